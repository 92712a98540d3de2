"""Answers to the exercises of chapter 5: the right ones, and mistakes learners make."""

import copy
from itertools import pairwise

import torch
from torch import nn

from qtorch_tutorial.affine import choose_qparams, fake_quantize

# ---- 5.1 -------------------------------------------------------------------------


def right_bytes(sizes, bias):
    layers = [nn.Linear(i, o, bias) for i, o in pairwise(sizes)]
    return sum(p.nbytes for layer in layers for p in layer.parameters())


def numbers_instead_of_bytes(sizes, bias):
    return right_bytes(sizes, bias) // 4


def float64_bytes(sizes, bias):
    return 2 * right_bytes(sizes, bias)


def weights_only(sizes, bias):
    return right_bytes(sizes, False)


def biases_always(sizes, bias):
    return right_bytes(sizes, True)


def bias_per_input(sizes, bias):
    return weights_only(sizes, bias) + 4 * bias * sum(sizes[:-1])


def first_layer_only(sizes, bias):
    return right_bytes(sizes[:2], bias)


def bytes_as_float(sizes, bias):
    return right_bytes(sizes, bias) / 1


def all_pairs(sizes, bias):
    return 4 * torch.tensor(sizes).prod().item()


# ---- 5.2 -------------------------------------------------------------------------


def right_linear(x, w, b, g):
    y = torch.stack([(w * row).sum(1) + b for row in x])
    grad_x = torch.stack([(w * row[:, None]).sum(0) for row in g])
    grad_w = torch.stack([(x * column[:, None]).sum(0) for column in g.T])
    return y, grad_x, grad_w, g.sum(0)


def matrix_product(x, w, b, g):
    return x @ w.T + b, g @ w, g.T @ x, g.sum(0)


def linalg_product(x, w, b, g):
    return torch.linalg.matmul(x, w.T) + b, *right_linear(x, w, b, g)[1:]


def linear_and_autograd(x, w, b, g):
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = (x[:, None] * w).sum(2) + b
    return y, *torch.autograd.grad(y, leaves, g)


def no_bias(x, w, b, g):
    y, *grads = right_linear(x, w, b, g)
    return y - b, *grads


def weight_gradient_transposed(x, w, b, g):
    y, grad_x, grad_w, grad_b = right_linear(x, w, b, g)
    return y, grad_x, grad_w.T, grad_b


def weight_gradient_per_row(x, w, b, g):
    y, grad_x, _, grad_b = right_linear(x, w, b, g)
    return y, grad_x, g[:, :, None] * x[:, None, :], grad_b


def bias_gradient_not_summed(x, w, b, g):
    y, grad_x, grad_w, _ = right_linear(x, w, b, g)
    return y, grad_x, grad_w, g


def bias_gradient_averaged(x, w, b, g):
    y, grad_x, grad_w, _ = right_linear(x, w, b, g)
    return y, grad_x, grad_w, g.mean(0)


def gradient_of_a_sum(x, w, b, g):
    return right_linear(x, w, b, torch.ones_like(g))


def list_of_four(x, w, b, g):
    return list(right_linear(x, w, b, g))


def output_only(x, w, b, g):
    return right_linear(x, w, b, g)[0]


# ---- 5.3 -------------------------------------------------------------------------


def agreement(model, rounded, x):
    same = model(x).argmax(1) == rounded(x).argmax(1)
    return same.sum().item() / len(x)


@torch.no_grad()
def round_(weight, bits, axis=0):
    grid = choose_qparams(weight, bits=bits, signed=True, symmetric=True, axis=axis)
    weight.copy_(fake_quantize(weight, grid))


def round_linears(model, bits, axis=0):
    for module in model.modules():
        if type(module) is nn.Linear:
            round_(module.weight, bits, axis)


def rounded_copy(model, bits):
    rounded = copy.deepcopy(model)
    round_linears(rounded, bits)
    return rounded


def right_bits(model, x, share):
    shares = {n: agreement(model, rounded_copy(model, n), x) for n in range(2, 9)}
    return min((n for n, kept in shares.items() if kept >= share), default=32)


def rounds_the_model_itself(model, x, share):
    answers = model(x).argmax(1)
    for bits in range(2, 9):
        round_linears(model, bits)
        if (model(x).argmax(1) == answers).float().mean() >= share:
            return bits
    return 32


def fewest_bits(model, x, share, round_all):
    """The search itself; ``round_all(copy, bits)`` holds the mistake."""
    for bits in range(2, 9):
        rounded = copy.deepcopy(model)
        round_all(rounded, bits)
        if agreement(model, rounded, x) >= share:
            return bits
    return 32


def one_grid_for_all(model, x, share):
    def round_all(rounded, bits):
        round_linears(rounded, bits, axis=None)

    return fewest_bits(model, x, share, round_all)


def strictly_more(model, x, share):
    for bits in range(2, 9):
        if agreement(model, rounded_copy(model, bits), x) > share:
            return bits
    return 32


def from_the_top(model, x, share):
    for bits in range(8, 1, -1):
        if agreement(model, rounded_copy(model, bits), x) >= share:
            return bits
    return 32


def outer_layers_only(model, x, share):
    def round_all(rounded, bits):
        for module in rounded.children():
            if isinstance(module, nn.Linear):
                round_(module.weight, bits)

    return fewest_bits(model, x, share, round_all)


def children_only(model, x, share):
    def round_below(module, bits):
        for child in module.children():
            if isinstance(child, nn.Linear):
                round_(child.weight, bits)
            round_below(child, bits)

    return fewest_bits(model, x, share, round_below)


def first_linear_only(model, x, share):
    def round_all(rounded, bits):
        round_(rounded[0].weight, bits)

    return fewest_bits(model, x, share, round_all)


def every_parameter(model, x, share):
    def round_all(rounded, bits):
        for parameter in rounded.parameters():
            round_(parameter, bits)

    return fewest_bits(model, x, share, round_all)


def share_kept(model, x, share):
    return agreement(model, rounded_copy(model, right_bits(model, x, share)), x)


def none_if_not_enough(model, x, share):
    bits = right_bits(model, x, share)
    return None if bits == 32 else bits


def eight_if_not_enough(model, x, share):
    return min(right_bits(model, x, share), 8)


ANSWERS = {
    "ch05.ex1": {
        "right": right_bytes,
        "wrong": {
            "numbers instead of bytes": (numbers_instead_of_bytes, "each takes 4"),
            "float64": (float64_bytes, "takes 4 bytes, not 8"),
            "weights only": (weights_only, "the biases are missing"),
            "biases always": (biases_always, "with bias=False there are no biases"),
            "a bias for each input": (bias_per_input, "one bias for each output"),
            "first layer only": (first_layer_only, "only the first layer"),
            "a float": (bytes_as_float, "return an int, not a float"),
            "product of all sizes": (all_pairs, "bytes, you have"),
        },
    },
    "ch05.ex2": {
        "right": right_linear,
        "wrong": {
            "matrix product": (matrix_product, "matmul is not allowed"),
            "linalg": (linalg_product, "matmul is not allowed"),
            "autograd": (linear_and_autograd, "grad is not allowed"),
            "no bias": (no_bias, "y lacks the bias"),
            "weight gradient transposed": (weight_gradient_transposed, "g comes first"),
            "weight gradient not summed": (weight_gradient_per_row, "grad_w has shape"),
            "bias gradient not summed": (bias_gradient_not_summed, "the shape of b"),
            "bias gradient averaged": (bias_gradient_averaged, "grad_b is a mean"),
            "g ignored": (gradient_of_a_sum, "grad_x has the right shape and wrong"),
            "a list": (list_of_four, "return the tuple"),
            "output only": (output_only, "return the tuple"),
        },
    },
    "ch05.ex3": {
        "right": right_bits,
        "wrong": {
            "rounds the model itself": (rounds_the_model_itself, "round a copy of it"),
            "one grid for all": (one_grid_for_all, "each row has a grid of its own"),
            "strictly more": (strictly_more, "compare with >="),
            "from the top": (from_the_top, "the smallest number of bits"),
            "outer layers only": (outer_layers_only, "one inside another module"),
            "children only": (children_only, "may itself be one nn.Linear"),
            "first linear only": (first_linear_only, "not only the first"),
            "biases too": (every_parameter, "the biases stay as they are"),
            "the share": (share_kept, "an int, not a float"),
            "none if not enough": (none_if_not_enough, "return 32, not None"),
            "eight if not enough": (eight_if_not_enough, "return 32, not 8"),
        },
    },
}
