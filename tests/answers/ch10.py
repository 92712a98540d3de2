"""Answers to the exercises of chapter 10: one that is right, and learners' mistakes."""

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn


def right_light(layer, x, scale, zero_point):
    stubs = nnq.Quantize(scale, zero_point, torch.quint8), nnq.DeQuantize()
    return nn.Sequential(stubs[0], layer, stubs[1])(x)


def floats_in(layer, x, scale, zero_point):
    return layer(x)


def signed(layer, x, scale, zero_point):
    x_q = torch.quantize_per_tensor(x, scale, zero_point, torch.qint8)
    return layer(x_q).dequantize()


def still_quantized(layer, x, scale, zero_point):
    return layer(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8))


def integers(layer, x, scale, zero_point):
    return still_quantized(layer, x, scale, zero_point).int_repr().float()


def grid_of_the_output(layer, x, scale, zero_point):
    return right_light(layer, x, layer.scale, layer.zero_point)


def in_float(layer, x, scale, zero_point):
    return nn.functional.linear(x, layer.weight().dequantize(), layer.bias()).detach()


def no_zero_point(layer, x, scale, zero_point):
    return right_light(layer, x, scale, 0)


STATIC = (nnq.Linear, nniq.LinearReLU)


def fresh(module):
    return module.scale == 1.0 and module.zero_point == 0


def right_names(model):
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nnq.Linear) and not isinstance(module, nnqd.Linear):
            found += [name] * fresh(module)
    return found


def by_isinstance(model):
    return [
        n for n, m in model.named_modules() if isinstance(m, nnq.Linear) and fresh(m)
    ]


def without_relu(model):
    return [n for n, m in model.named_modules() if type(m) is nnq.Linear and fresh(m)]


def scale_only(model):
    named = model.named_modules()
    return [n for n, m in named if type(m) in STATIC and m.scale == 1.0]


def zero_point_only(model):
    named = model.named_modules()
    return [n for n, m in named if type(m) in STATIC and m.zero_point == 0]


def whatever_has_a_scale(model):
    named = model.named_modules()
    return [
        n
        for n, m in named
        if type(m) is not nnqd.Linear and hasattr(m, "scale") and fresh(m)
    ]


def children_only(model):
    named = model.named_children()
    return [n for n, m in named if type(m) in STATIC and fresh(m)]


def the_modules(model):
    return [m for m in model.modules() if type(m) in STATIC and fresh(m)]


def backward_order(model):
    return right_names(model)[::-1]


def a_set(model):
    return set(right_names(model))


def packed_numbers(model):
    return sum(m.weight().numel() for m in model.modules() if isinstance(m, nnq.Linear))


def share(left, packed):
    return left / (left + packed)


def right_share(model):
    left = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return share(left, packed_numbers(model))


def parameters_only(model):
    left = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return 1.0 if left else 0.5


def biases_too(model):
    return share(sum(p.numel() for p in model.parameters()), packed_numbers(model))


def layers(model):
    left = sum(isinstance(m, nn.Linear) for m in model.modules())
    return share(left, sum(isinstance(m, nnq.Linear) for m in model.modules()))


def linear_modules_only(model):
    modules = [m for m in model.modules() if isinstance(m, nn.Linear)]
    left = sum(m.weight.numel() for m in modules)
    return share(left, packed_numbers(model)) if left else 0.0


def dynamic_only(model):
    left = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    modules = [m for m in model.modules() if type(m) is nnqd.Linear]
    return share(left, sum(m.weight().numel() for m in modules))


def percent(model):
    return 100 * right_share(model)


def packed_share(model):
    return 1 - right_share(model)


ANSWERS = {
    "ch10.ex1": {
        "right": right_light,
        "wrong": {
            "floats straight in": (floats_in, "refuses floats"),
            "signed activations": (signed, "activations are quint8"),
            "not dequantized": (still_quantized, "still quantized"),
            "integers taken for floats": (integers, "what they stand for"),
            "the grid of the output": (grid_of_the_output, "the output's grid"),
            "the layer avoided": (in_float, "between the steps"),
            "zero point forgotten": (no_zero_point, "look at the grid of x"),
        },
    },
    "ch10.ex2": {
        "right": right_names,
        "wrong": {
            "dynamic layers by isinstance": (by_isinstance, "and is healthy"),
            "no LinearReLU": (without_relu, "LinearReLU is a static layer"),
            "scale only": (scale_only, "another zero point"),
            "zero point only": (zero_point_only, "another scale"),
            "whatever has a scale": (whatever_has_a_scale, "only nnq.Linear and"),
            "children only": (children_only, "inside modules"),
            "modules instead of names": (the_modules, "holds names"),
            "reversed": (backward_order, "keep the order"),
            "a set": (a_set, "return a list"),
        },
    },
    "ch10.ex3": {
        "right": right_share,
        "wrong": {
            "packed weights overlooked": (parameters_only, "unpacks what is packed"),
            "biases counted": (biases_too, "no biases"),
            "layers counted": (layers, "count numbers"),
            "only modules, no bare parameter": (linear_modules_only, "bare parameter"),
            "only dynamic layers": (dynamic_only, "static layers are packed"),
            "percent": (percent, "not percent"),
            "the packed share": (packed_share, "share that is packed"),
        },
    },
}
