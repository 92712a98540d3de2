"""Answers to the exercises of chapter 13: one that is right, and learners' mistakes."""

import copy

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.quantization as tq
from torch import nn


def _parts(linear, bn):
    """Weight, bias, gamma, beta, mean and variance, with what is absent filled in."""
    zeros, ones = torch.zeros(bn.num_features), torch.ones(bn.num_features)
    return (
        linear.weight.data,
        zeros if linear.bias is None else linear.bias.data,
        bn.weight.data if bn.affine else ones,
        bn.bias.data if bn.affine else zeros,
        bn.running_mean,
        bn.running_var,
    )


def _layer(weight, bias):
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data, made.bias.data = weight, bias
    return made


def right_fold(linear, bn):
    """Read the map off its images: of zero, and of the unit vectors."""
    with torch.no_grad():
        shift = bn(linear(torch.zeros(1, linear.in_features)))
        columns = bn(linear(torch.eye(linear.in_features))) - shift
    return _layer(columns.T.contiguous(), shift[0])


def _fold(factor, shift):
    """A fold whose factor and whose bias come from two formulas."""

    def fold_batch_norm(linear, bn):
        w, b, gamma, beta, mean, var = _parts(linear, bn)
        f = factor(gamma, var, bn.eps)
        return _layer(f[:, None] * w, shift(f, b, beta, mean))

    return fold_batch_norm


def _factor(gamma, var, eps):
    return gamma / (var + eps).sqrt()


def _shift(f, b, beta, mean):
    return f * (b - mean) + beta


def needs_a_bias(linear, bn):
    factor = (bn.running_var + bn.eps).rsqrt() * (bn.weight if bn.affine else 1)
    shift = factor * (linear.bias - bn.running_mean) + (bn.bias if bn.affine else 0)
    return _layer((factor[:, None] * linear.weight).data, shift.data)


def needs_affine(linear, bn):
    return nn.utils.fusion.fuse_linear_bn_eval(linear.eval(), bn)


def along_the_inputs(linear, bn):
    w, b, gamma, beta, mean, var = _parts(linear, bn)
    f = _factor(gamma, var, bn.eps)
    return _layer(w * f[:1], _shift(f, b, beta, mean))


def into_linear(linear, bn):
    made = right_fold(linear, bn)
    linear.weight.data = made.weight.data
    return made


def returns_linear(linear, bn):
    return linear


def as_tuple(linear, bn):
    made = right_fold(linear, bn)
    return made.weight, made.bias


def without_bias(linear, bn):
    made = right_fold(linear, bn)
    made.bias = None
    return made


def transposed(linear, bn):
    made = right_fold(linear, bn)
    return _layer(made.weight.data.T.contiguous(), torch.zeros(linear.in_features))


def right_kinds(kinds, names):
    found = [kinds[name] for name in names if name in kinds]
    if len(found) != len(names) or len(found) != 2 or found[0] != "Linear":
        raise ValueError("no fuser")
    if found[1] == "Linear":
        raise ValueError("no fuser")
    after = dict(kinds)
    after[names[0]] = "Linear" if found[1] == "BatchNorm1d" else "LinearReLU"
    after[names[1]] = "Identity"
    return after


def _kinds(change):
    """A right prediction with one thing wrong."""

    def after_fusing(kinds, names):
        after = right_kinds(kinds, names)
        change(after, names)
        return after

    return after_fusing


def _drop_last(after, names):
    del after[names[-1]]


def _keep_last(after, names):
    after[names[-1]] = "ReLU" if after[names[0]] == "LinearReLU" else "BatchNorm1d"


def _call_it_bn(after, names):
    if after[names[0]] == "Linear":
        after[names[0]] = "LinearBn1d"


def _call_it_linear(after, names):
    after[names[0]] = "Linear"


def all_three(kinds, names):
    if [kinds.get(n) for n in names] == ["Linear", "BatchNorm1d", "ReLU"]:
        last = dict.fromkeys(names[1:], "Identity")
        return kinds | last | {names[0]: "LinearReLU"}
    return right_kinds(kinds, names)


def any_order(kinds, names):
    by_kind = sorted(names, key=lambda n: kinds.get(n) != "Linear")
    return right_kinds(kinds, by_kind)


def unknown_name(kinds, names):
    if len([kinds[name] for name in names]) != 2:
        raise ValueError("no pair")
    return right_kinds(kinds, names)


def neighbors_only(kinds, names):
    order = list(kinds)
    if len(names) == 2 and order.index(names[1]) - order.index(names[0]) != 1:
        raise ValueError("not neighbors")
    return right_kinds(kinds, names)


def kinds_in_place(kinds, names):
    after = right_kinds(kinds, names)
    kinds.update(after)
    return kinds


def kinds_as_list(kinds, names):
    return list(right_kinds(kinds, names).values())


def right_lists(model, lists, x):
    found = []
    for names in lists:
        changed = tq.fuse_modules(copy.deepcopy(model), [names])(x)
        apart = (changed - model(x)).abs().max() / model(x).abs().max()
        if apart > 1e-4:
            found.append(names)
    return found


def bit_for_bit(model, lists, x):
    return [n for n in lists if not torch.equal(tq.fuse_modules(model, n)(x), model(x))]


def absolute_bound(model, lists, x):
    return [
        names
        for names in lists
        if (tq.fuse_modules(model, names)(x) - model(x)).abs().max() > 1e-4
    ]


def one_after_the_other(model, lists, x):
    right, found = model(x), []
    model = copy.deepcopy(model)
    for names in lists:
        tq.fuse_modules(model, names, inplace=True)
        if (model(x) - right).abs().max() > 1e-4 * right.abs().max():
            found.append(names)
    return found


def lists_in_place(model, lists, x):
    right = model(x)
    fused = [tq.fuse_modules(model, names, inplace=True)(x) for names in lists]
    return [n for n, y in zip(lists, fused, strict=True) if not torch.equal(y, right)]


def right_ones(model, lists, x):
    wrong = right_lists(model, lists, x)
    return [names for names in lists if names not in wrong]


def none_is_wrong(model, lists, x):
    return []


def first_only(model, lists, x):
    return right_lists(model, lists, x)[:1]


def number_of_lists(model, lists, x):
    return len(right_lists(model, lists, x))


def right_fuser(is_qat, linear, bn, relu):
    if is_qat:
        raise NotImplementedError("in training the batch norm moves")
    assert not linear.training
    assert not bn.training
    return nni.LinearReLU(right_fold(linear, bn), relu)


def mode_ignored(is_qat, linear, bn, relu):
    if is_qat:
        raise NotImplementedError("in training the batch norm moves")
    made = right_fold(copy.deepcopy(linear).eval(), copy.deepcopy(bn).eval())
    return nni.LinearReLU(made, relu)


def qat_ignored(is_qat, linear, bn, relu):
    made = right_fold(copy.deepcopy(linear).eval(), copy.deepcopy(bn).eval())
    return nni.LinearReLU(made, relu)


def another_error(is_qat, linear, bn, relu):
    if is_qat:
        raise ValueError("not for training")
    return right_fuser(is_qat, linear, bn, relu)


def batch_norm_lost(is_qat, linear, bn, relu):
    return nni.LinearReLU(linear, relu)


def relu_lost(is_qat, linear, bn, relu):
    return right_fold(linear, bn)


def in_a_row(is_qat, linear, bn, relu):
    return nn.Sequential(linear, bn, relu)


def unfolded(is_qat, linear, bn, relu):
    made = nni.LinearReLU(linear, relu)
    made[0] = nni.LinearBn1d(linear, bn)
    return made


def bias_forgotten(is_qat, linear, bn, relu):
    made = right_fuser(is_qat, linear, bn, relu)
    made[0].bias.data = linear.bias.data
    return made


ANSWERS = {
    "ch13.ex1": {
        "right": right_fold,
        "wrong": {
            "no eps": (
                _fold(lambda g, var, eps: g / var.sqrt(), _shift),
                "eps is missing",
            ),
            "eps outside": (
                _fold(lambda g, var, eps: g / (var.sqrt() + eps), _shift),
                "eps belongs under the root",
            ),
            "no root": (
                _fold(lambda g, var, eps: g / (var + eps), _shift),
                "the variance needs a root",
            ),
            "no gamma": (
                _fold(lambda g, var, eps: (var + eps).rsqrt(), _shift),
                "the factor also contains bn's weight",
            ),
            "weight kept": (
                _fold(lambda g, var, eps: torch.ones_like(var), _shift),
                "the weight is still linear's",
            ),
            "one factor for all": (along_the_inputs, "row j of the weight"),
            "bias kept": (
                _fold(_factor, lambda f, b, beta, mean: b),
                "the bias is still linear's",
            ),
            "mean forgotten": (
                _fold(_factor, lambda f, b, beta, mean: f * b + beta),
                "the running mean is not subtracted",
            ),
            "bias not multiplied": (
                _fold(_factor, lambda f, b, beta, mean: b - f * mean + beta),
                "linear's bias passes through bn",
            ),
            "beta forgotten": (
                _fold(_factor, lambda f, b, beta, mean: f * (b - mean)),
                "beta, is not added",
            ),
            "beta multiplied": (
                _fold(_factor, lambda f, b, beta, mean: f * (b - mean + beta)),
                "beta is added last",
            ),
            "mean added": (
                _fold(_factor, lambda f, b, beta, mean: f * (b + mean) + beta),
                "do not add it",
            ),
            "mean squared": (
                _fold(_factor, lambda f, b, beta, mean: f * (b - mean**2) + beta),
                "the weight is right and the bias is not",
            ),
            "needs a bias": (needs_a_bias, "linear has no bias here"),
            "needs affine": (needs_affine, "bn has no weight and bias here"),
            "linear changed": (into_linear, "you changed linear or bn itself"),
            "linear returned": (returns_linear, "not linear itself"),
            "weight and bias": (as_tuple, "not a tuple"),
            "no bias": (without_bias, "needs a bias in every case"),
            "transposed": (transposed, "mind the order"),
        },
    },
    "ch13.ex2": {
        "right": right_kinds,
        "wrong": {
            "name dropped": (_kinds(_drop_last), "no name disappears"),
            "last one kept": (_kinds(_keep_last), "has been absorbed"),
            "LinearBn1d": (_kinds(_call_it_bn), "is what fuse_modules_qat makes"),
            "never LinearReLU": (_kinds(_call_it_linear), "fusing ['b', 's'] gives"),
            "three at once": (all_three, "torch refuses ['a', 'n', 'r']"),
            "any order": (any_order, "torch refuses ['n', 'a']"),
            "neighbors only": (neighbors_only, "torch fuses ['a', 'r'], and yours"),
            "unknown name": (unknown_name, "raise a ValueError, not KeyError"),
            "in place": (kinds_in_place, "you changed kinds itself"),
            "a list": (kinds_as_list, "return a dict, not list"),
        },
    },
    "ch13.ex3": {
        "right": right_lists,
        "wrong": {
            "bit for bit": (bit_for_bit, "changes only the last digits"),
            "absolute bound": (absolute_bound, "changes only the last digits"),
            "one after the other": (one_after_the_other, "on the unfused model"),
            "in place": (lists_in_place, "model itself is fused now"),
            "the right ones": (right_ones, "asked for are the wrong ones"),
            "none": (none_is_wrong, "changes the outputs, and your answer"),
            "the first only": (first_only, "['fc2', 'bn2'] changes the outputs"),
            "a number": (number_of_lists, "return a list of lists, not int"),
        },
    },
    "ch13.ex4": {
        "right": right_fuser,
        "wrong": {
            "batch norm lost": (batch_norm_lost, "the batch norm is lost"),
            "relu lost": (relu_lost, "not a Linear"),
            "in a row": (in_a_row, "return an nni.LinearReLU, not a Sequential"),
            "unfolded": (unfolded, "one nn.Linear, not a LinearBn1d"),
            "bias forgotten": (bias_forgotten, "not relu(bn(linear(x)))"),
            "qat ignored": (qat_ignored, "raise NotImplementedError: yours fuses"),
            "another error": (another_error, "yours raises ValueError"),
            "mode ignored": (mode_ignored, "raise AssertionError: yours fuses"),
        },
    },
}
