"""Answers to the exercises of chapter 12: one that is right, and learners' mistakes."""

import torch


def within(name, names):
    return any(name.startswith(f"{module}.") for module in names)


def right_freeze(model, names):
    thawed = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = within(name, names)
        if parameter.requires_grad:
            thawed.append(name)
    return thawed


def attribute_of_the_module(model, names):
    for name, module in model.named_modules():
        module.requires_grad = name in names
    return [n for n, p in model.named_parameters() if p.requires_grad]


def by_prefix(model, names):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(names)))
    return [n for n, p in model.named_parameters() if p.requires_grad]


def never_thawed(model, names):
    for name, parameter in model.named_parameters():
        if not within(name, names):
            parameter.requires_grad_(False)
    return [n for n, p in model.named_parameters() if p.requires_grad]


def the_other_way_round(model, names):
    model.requires_grad_(True)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return [n for n, p in model.named_parameters() if p.requires_grad]


def exact_modules(model, names):
    model.requires_grad_(False)
    for name in names:
        for parameter in model.get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(True)
    return [n for n, p in model.named_parameters() if p.requires_grad]


def names_of_modules(model, names):
    right_freeze(model, names)
    return names


def right_bytes(shapes, rank):
    numbers = 0
    for out_features, in_features in shapes:
        numbers += rank * in_features + out_features * rank
    return 4 * numbers, 8 * numbers + 8 * len(shapes)


def whole_weights(shapes, rank):
    trained = 4 * sum(o * i for o, i in shapes)
    return trained, 2 * trained + 8 * len(shapes)


def numbers_only(shapes, rank):
    trained = rank * sum(o + i for o, i in shapes)
    return trained, 2 * trained + 2 * len(shapes)


def only_down(shapes, rank):
    trained = 4 * rank * sum(i for _, i in shapes)
    return trained, 2 * trained + 8 * len(shapes)


def one_moment(shapes, rank):
    trained, _ = right_bytes(shapes, rank)
    return trained, trained


def no_counters(shapes, rank):
    trained, _ = right_bytes(shapes, rank)
    return trained, 2 * trained


def one_counter_each(shapes, rank):
    trained, _ = right_bytes(shapes, rank)
    return trained, 2 * trained + 4 * len(shapes)


def with_gradients(shapes, rank):
    trained, in_adam = right_bytes(shapes, rank)
    return trained, trained + in_adam


def right_gradient(x, q, grad_y):
    return torch.einsum("bo,bi,oi->o", grad_y, x, q.float())


def not_summed(x, q, grad_y):
    return grad_y * (x @ q.float().T)


def averaged(x, q, grad_y):
    return (grad_y * (x @ q.float().T)).mean(dim=0)


def no_chain_rule(x, q, grad_y):
    return (x @ q.float().T).sum(dim=0)


def of_the_bias(x, q, grad_y):
    return grad_y.sum(dim=0)


def product_of_sums(x, q, grad_y):
    return grad_y.sum(dim=0) * (x.sum(dim=0) @ q.float().T)


def narrow_product(x, q, grad_y):
    return (grad_y * (x.to(torch.int8) @ q.T)).sum(dim=0)


def on_grid(weight, half=127.5):
    scale = weight.abs().amax(dim=1) / half
    q = (weight / scale[:, None]).round().clamp(-128, 127).to(torch.int8)
    return q, scale


def right_merge(q, scale, down, up, factor):
    return on_grid(q.float() * scale[:, None] + up @ down * factor)


def factor_forgotten(q, scale, down, up, factor):
    return on_grid(q * scale[:, None] + up @ down)


def old_scales(q, scale, down, up, factor):
    steps = q + factor * up @ down / scale[:, None]
    return steps.round().clamp(-128, 127).to(torch.int8), scale


def adapter_alone(q, scale, down, up, factor):
    return on_grid(factor * up @ down)


def never_dequantized(q, scale, down, up, factor):
    return on_grid(q + factor * up @ down)


def half_of_255(q, scale, down, up, factor):
    return on_grid(q * scale[:, None] + factor * up @ down, half=127)


def one_scale(q, scale, down, up, factor):
    weight = q * scale[:, None] + factor * up @ down
    step = weight.abs().max() / 127.5
    return (weight / step).round().clamp(-128, 127).to(torch.int8), step


def float_weight(q, scale, down, up, factor):
    return q * scale[:, None] + factor * up @ down, scale


def in_place(q, scale, down, up, factor):
    new, step = right_merge(q, scale, down, up, factor)
    q.copy_(new)
    return q, step


ANSWERS = {
    "ch12.ex1": {
        "right": right_freeze,
        "wrong": {
            "attribute of the module": (attribute_of_the_module, "sets an attribute"),
            "by prefix": (by_prefix, "only begins like"),
            "frozen before": (never_thawed, "frozen before you came"),
            "inverted": (the_other_way_round, "the other way round"),
            "no recursion": (exact_modules, "reach what stands inside"),
            "names of modules": (names_of_modules, "the names of parameters"),
        },
    },
    "ch12.ex2": {
        "right": right_bytes,
        "wrong": {
            "whole weights": (whole_weights, "an adapter is thin"),
            "numbers, not bytes": (numbers_only, "a float32 has 4 bytes"),
            "down only": (only_down, "up (out, rank)"),
            "one moment": (one_moment, "two numbers for each parameter"),
            "no counters": (no_counters, "a counter of 4 bytes besides"),
            "a counter for each layer": (one_counter_each, "two tensors, each"),
            "gradients counted": (with_gradients, "not part of Adam's state"),
        },
    },
    "ch12.ex3": {
        "right": right_gradient,
        "wrong": {
            "not summed": (not_summed, "has one gradient"),
            "averaged": (averaged, "the mean is already in grad_y"),
            "no chain rule": (no_chain_rule, "Multiply by it"),
            "of the bias": (of_the_bias, "the gradient of the bias"),
            "product of sums": (product_of_sums, "row by row first"),
            "product in int8": (narrow_product, "multiply q as floats"),
        },
    },
    "ch12.ex4": {
        "right": right_merge,
        "wrong": {
            "no factor": (factor_forgotten, "the factor is missing"),
            "old scales": (old_scales, "the scales are the old ones"),
            "adapter alone": (adapter_alone, "only the adapter"),
            "not dequantized": (never_dequantized, "dequantize q first"),
            "127 steps": (half_of_255, "127.5 steps"),
            "one scale": (one_scale, "a scale for each row, shape"),
            "float weight": (float_weight, "the integers, int8"),
            "in place": (in_place, "you change what you are given"),
        },
    },
}
