"""Answers to the exercises of chapter 8: one that is right, and learners' mistakes."""

import copy
import itertools
import math

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn


def right_relu(q, zero_point):
    return torch.where(q.int() < zero_point, zero_point, q.int()).to(torch.uint8)


def clamp_at_zero(q, zero_point):
    return q.clamp(min=0)


def zero_instead_of_zero_point(q, zero_point):
    return torch.where(q < zero_point, 0, q)


def centered(q, zero_point):
    return (q.int() - zero_point).clamp(min=0).to(torch.uint8)


def wraps_around(q, zero_point):
    return (q - zero_point).clamp(min=0)


def in_place(q, zero_point):
    return q.clamp_(min=zero_point)


def wider_integers(q, zero_point):
    return q.int().clamp(min=zero_point)


def dequantized(q, zero_point):
    return (q.float() - zero_point).relu()


def flattened(q, zero_point):
    return q.clamp(min=zero_point).flatten()


def one_too_far(q, zero_point):
    return q.clamp(min=min(zero_point + 1, 255))


def right_gain(low, high):
    width = high - low if low < 0 else high
    return 20 * (math.log10(width) - math.log10(high))


def not_widened(low, high):
    return 20 * math.log10((high - low) / high)


def ratio_only(low, high):
    return (high - min(low, 0.0)) / high


def upside_down(low, high):
    return 20 * math.log10(high / (high - min(low, 0.0)))


def power(low, high):
    return 10 * math.log10((high - min(low, 0.0)) / high)


def natural_logarithm(low, high):
    return 20 * math.log((high - min(low, 0.0)) / high)


def magnitude(low, high):
    return 20 * math.log10(max(-low, 1e-9) / high)


def tensor_gain(low, high):
    return 20 * torch.log10(torch.tensor((high - min(low, 0.0)) / high))


def right_pairs(children):
    modules = [module for _, module in children]
    found = []
    for i in range(len(children) - 1):
        first, second = modules[i], modules[i + 1]
        if type(first) is nn.Linear and type(second) is nn.ReLU:
            if sum(m is first for m in modules) > 1:
                continue
            if sum(m is second for m in modules) > 1:
                continue
            found.append([children[i][0], children[i + 1][0]])
    return found


def _neighbors(children, fits):
    return [
        [name, after]
        for (name, m), (after, n) in itertools.pairwise(children)
        if fits(m, n)
    ]


def shared_forgotten(children):
    return _neighbors(children, lambda m, n: (type(m), type(n)) == (nn.Linear, nn.ReLU))


def shared_relu_forgotten(children):
    modules = [module for _, module in children]
    return _neighbors(
        children,
        lambda m, n: (
            (type(m), type(n)) == (nn.Linear, nn.ReLU)
            and sum(k is m for k in modules) == 1
        ),
    )


def subclasses(children):
    return _neighbors(
        children, lambda m, n: isinstance(m, nn.Linear) and isinstance(n, nn.ReLU)
    )


def by_class_name(children):
    return _neighbors(
        children,
        lambda m, n: (
            type(m) is nn.Linear
            and type(n).__name__.startswith("ReLU")
            and sum(k is m for _, k in children) == 1
        ),
    )


def any_later_relu(children):
    found = []
    for i, (name, module) in enumerate(children):
        later = [n for n, m in children[i + 1 :] if type(m) is nn.ReLU]
        if type(module) is nn.Linear and later:
            found.append([name, later[0]])
    return found


def any_order(children):
    kinds = {nn.Linear, nn.ReLU}
    return _neighbors(children, lambda m, n: {type(m), type(n)} == kinds)


def names_only(children):
    return [name for pair in right_pairs(children) for name in pair]


def as_dict(children):
    return dict(right_pairs(children))


def right_shade(linear, high):
    made = nniq.LinearReLU(linear.in_features, linear.out_features)
    made._packed_params.set_weight_bias(linear.weight(), linear.bias())
    made.scale, made.zero_point = high / 127, 0
    return made


def _with(change):
    def shade(linear, high):
        made = right_shade(linear, high)
        change(made, linear, high)
        return made

    return shade


def _set(**attributes):
    return lambda made, linear, high: vars(made).update(
        {name: value(linear, high) for name, value in attributes.items()}
    )


def without_weight(linear, high):
    made = nniq.LinearReLU(linear.in_features, linear.out_features)
    empty = torch.zeros(linear.out_features, linear.in_features)
    made.set_weight_bias(
        torch.quantize_per_tensor(empty, 1.0, 0, torch.qint8), linear.bias()
    )  # what a new module holds is not defined; zeros make the test repeatable
    made.scale, made.zero_point = high / 127, 0
    return made


def still_linear(linear, high):
    made = nnq.Linear(linear.in_features, linear.out_features)
    made.set_weight_bias(linear.weight(), linear.bias())
    made.scale, made.zero_point = high / 127, 0
    return made


def changes_linear(linear, high):
    linear.scale, linear.zero_point = high / 127, 0
    return right_shade(linear, high)


def itself(linear, high):
    linear.scale, linear.zero_point = high / 127, 0
    return linear


def swapped(linear, high):
    made = nniq.LinearReLU(linear.out_features, linear.in_features)
    made.scale, made.zero_point = high / 127, 0
    return made


def own_grid(linear, high):
    made = right_shade(linear, high)
    made.scale, made.zero_point = linear.scale, linear.zero_point
    return made


def invented_bias(linear, high):
    made = right_shade(linear, high)
    bias = linear.bias()
    made.set_weight_bias(
        linear.weight(), torch.ones(linear.out_features) if bias is None else bias
    )
    return made


class _NoReLU(nniq.LinearReLU):
    """Only here to be refused."""


def subclassed(linear, high):
    made = copy.deepcopy(right_shade(linear, high))
    made.__class__ = _NoReLU
    return made


ANSWERS = {
    "ch08.ex1": {
        "right": right_relu,
        "wrong": {
            "clamp at 0": (clamp_at_zero, "nothing was removed"),
            "0 for 0.0": (zero_instead_of_zero_point, "0.0 is the integer 55, not 0"),
            "zero point subtracted": (centered, "you moved to another grid"),
            "uint8 difference": (wraps_around, "wraps around"),
            "in place": (in_place, "you changed q itself"),
            "left in int32": (wider_integers, "yours are torch.int32"),
            "left in float": (dequantized, "yours are torch.float32"),
            "flattened": (flattened, "the shape (4, 64) became (256,)"),
            "one too far": (one_too_far, "you make 56 of 0; it is 55"),
        },
    },
    "ch08.ex2": {
        "right": right_gain,
        "wrong": {
            "not widened to zero": (not_widened, "does not contain 0"),
            "ratio, no decibels": (ratio_only, "turn it into decibels"),
            "upside down": (upside_down, "a smaller step is a gain"),
            "decibels of a power": (power, "20 log10, not 10 log10"),
            "natural logarithm": (natural_logarithm, "to base 10"),
            "low over high": (magnitude, "its width counts"),
            "a tensor": (tensor_gain, "return a float, not Tensor"),
            "a constant": (lambda low, high: 4.0, "is not 4 dB"),
        },
    },
    "ch08.ex3": {
        "right": right_pairs,
        "wrong": {
            "shared modules": (shared_forgotten, "a Linear that stands in two places"),
            "shared relu": (shared_relu_forgotten, "a ReLU that stands in two places"),
            "subclasses": (subclasses, "compare types exactly"),
            "by class name": (by_class_name, "ReLU6 is no ReLU"),
            "any later relu": (any_later_relu, "only the module right after"),
            "any order": (any_order, "fuse [['in', 'act'], ['mid', 'act2']], not"),
            "names without pairs": (names_only, "a list of two names, not 'in'"),
            "a dictionary": (as_dict, "return a list of pairs, not dict"),
        },
    },
    "ch08.ex4": {
        "right": right_shade,
        "wrong": {
            "weight not set": (without_weight, "its weight is not that of linear"),
            "bias lost": (
                _with(lambda made, lin, _: made.set_weight_bias(lin.weight(), None)),
                "the bias is lost",
            ),
            "bias invented": (invented_bias, "linear has no bias"),
            "256 integers": (
                _with(_set(scale=lambda _, high: high / 255)),
                "you divide by 255",
            ),
            "zero point kept": (
                _with(_set(zero_point=lambda linear, _: linear.zero_point)),
                "has zero point 0, not",
            ),
            "whole grid kept": (own_grid, "has zero point 0, not"),
            "scale kept": (
                _with(_set(scale=lambda linear, _: linear.scale)),
                "its step is still that of linear",
            ),
            "scale is high": (_with(_set(scale=lambda _, high: high)), "not for high"),
            "no relu": (still_linear, "expected an nniq.LinearReLU, got Linear"),
            "a subclass": (subclassed, "expected an nniq.LinearReLU, got _NoReLU"),
            "linear changed": (changes_linear, "you changed linear itself"),
            "linear returned": (itself, "you returned linear itself"),
            "sizes swapped": (swapped, "mind the order"),
        },
    },
}
