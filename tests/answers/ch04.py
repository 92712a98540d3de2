"""Answers to the exercises of chapter 4: one that is right, and learners' mistakes."""

from collections import Counter

import torch


def right_verdict(cases):
    found = set(cases.values())
    return {
        frozenset({True}): "upheld",
        frozenset({False}): "overturned",
        frozenset({True, False}): "it depends",
    }.get(frozenset(found)) or _no_case()


def _no_case():
    raise ValueError("no case")


def verdict_by_majority(cases):
    counts = Counter(cases.values())
    return "upheld" if counts[True] > counts[False] else "overturned"


def verdict_by_any(cases):
    return "upheld" if any(cases.values()) else "overturned"


def verdict_by_all(cases):
    return "upheld" if all(cases.values()) else "overturned"


def verdict_upside_down(cases):
    turned = {"upheld": "overturned", "overturned": "upheld"}
    verdict = right_verdict(cases)
    return turned.get(verdict, verdict)


def verdict_misspelled(cases):
    if all(cases.values()):
        return "upheld"
    return "depends" if any(cases.values()) else "overturned"


def verdict_of_one_failure(cases):
    if cases and len(cases) == 1 and not all(cases.values()):
        return "it depends"
    return right_verdict(cases)


def verdict_of_nothing(cases):
    if all(cases.values()):  # true of no case at all
        return "upheld"
    return "it depends" if any(cases.values()) else "overturned"


PACKED = {
    "scale",
    "zero_point",
    "_packed_params.dtype",
    "_packed_params._packed_params",
}


def right_keys(form, bias):
    if form == "float":
        return {"weight"} | ({"bias"} if bias else set())
    return PACKED


def keys_of_a_float_layer(form, bias):
    return {"weight", "bias"} if bias else {"weight"}


def keys_with_a_bias_always(form, bias):
    return {"weight", "bias"} if form == "float" else PACKED


def keys_of_attributes(form, bias):
    if form == "float":
        return right_keys(form, bias)
    return {"scale", "zero_point", "_packed_params"}


def keys_without_dynamic_scale(form, bias):
    keys = right_keys(form, bias)
    return keys - {"scale", "zero_point"} if form == "dynamic" else keys


def keys_in_a_list(form, bias):
    return sorted(right_keys(form, bias))


def right_bytes(in_features, out_features, bias, per_channel):
    per_row = in_features + (8 if per_channel else 0) + (4 if bias else 0)
    return out_features * per_row + (8 if per_channel else 16)


def bytes_in_float(in_features, out_features, bias, per_channel):
    right = right_bytes(in_features, out_features, bias, per_channel)
    return right + 3 * in_features * out_features


def bytes_without_bias(in_features, out_features, bias, per_channel):
    return right_bytes(in_features, out_features, False, per_channel)


def bytes_of_an_int8_bias(in_features, out_features, bias, per_channel):
    right = right_bytes(in_features, out_features, False, per_channel)
    return right + (out_features if bias else 0)


def bytes_with_one_grid(in_features, out_features, bias, per_channel):
    return right_bytes(in_features, out_features, bias, False)


def bytes_of_scales_only(in_features, out_features, bias, per_channel):
    grids = out_features if per_channel else 1
    return right_bytes(in_features, out_features, bias, per_channel) - 4 * grids


def bytes_of_scales_of_rows(in_features, out_features, bias, per_channel):
    right = right_bytes(in_features, out_features, bias, per_channel)
    return right - (4 * out_features if per_channel else 0)


def bytes_without_output_grid(in_features, out_features, bias, per_channel):
    return right_bytes(in_features, out_features, bias, per_channel) - 8


def bytes_as_float(in_features, out_features, bias, per_channel):
    return float(right_bytes(in_features, out_features, bias, per_channel))


def _quantized(module, x):
    """Output of a module that takes quint8."""
    return module(torch.quantize_per_tensor(x, 1 / 127, 127, torch.quint8))


def right_lamp(module, x):
    try:
        y = module(x)
    except RuntimeError:
        y = _quantized(module, x)
    if y.dtype == torch.float32:
        return "float" if any(True for _ in module.parameters()) else "dynamic"
    below = y.int_repr() < y.q_zero_point()
    return "static" if below.any() else "fused"


def lamp_by_class(module, x):
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if "LinearReLU" in kind:
        return "fused"
    if "dynamic" in kind:
        return "dynamic"
    return "static" if "quantized" in kind else "float"


def lamp_by_attributes(module, x):
    if not callable(module.weight):
        return "float"
    return right_lamp(module, x)


def lamp_by_gradient(module, x):
    kind = right_lamp(module, x)
    if kind == "float" and not module(x).requires_grad:
        return "dynamic"
    return kind


def lamp_by_zero_point(module, x):
    kind = right_lamp(module, x)
    if kind in ("static", "fused"):
        return "fused" if _quantized(module, x).q_zero_point() == 0 else "static"
    return kind


def lamp_never_shaded(module, x):
    kind = right_lamp(module, x)
    return "static" if kind == "fused" else kind


def lamp_that_never_quantizes(module, x):
    module(x)
    return right_lamp(module, x)


def lamp_by_dtype_only(module, x):
    kind = right_lamp(module, x)
    return "float" if kind == "dynamic" else kind


ANSWERS = {
    "ch04.ex1": {
        "right": right_verdict,
        "wrong": {
            "the majority decides": (verdict_by_majority, "a trial is no vote"),
            "one case is enough": (verdict_by_any, "one case that fails is not upheld"),
            "never a mixture": (
                verdict_by_all,
                "one case that holds is not overturned",
            ),
            "upside down": (verdict_upside_down, "are 'upheld', you said 'overturned'"),
            "misspelled": (verdict_misspelled, "spelled 'it depends'"),
            "one failure depends": (
                verdict_of_one_failure,
                "cases [False] are 'overturned'",
            ),
            "no case is upheld": (verdict_of_nothing, "must raise a ValueError"),
        },
    },
    "ch04.ex2": {
        "right": right_keys,
        "wrong": {
            "all as nn.Linear": (keys_of_a_float_layer, "neither has a key of its own"),
            "bias always": (keys_with_a_bias_always, "bias=False has the keys"),
            "attributes for keys": (keys_of_attributes, "only the start of a key"),
            "dynamic has no scale": (keys_without_dynamic_scale, "are inherited"),
            "a list": (keys_in_a_list, "return a set of strings, not a list"),
        },
    },
    "ch04.ex3": {
        "right": right_bytes,
        "wrong": {
            "float weights": (bytes_in_float, "one byte here, not four"),
            "no bias": (bytes_without_bias, "The bias is missing"),
            "int8 bias": (bytes_of_an_int8_bias, "The bias stays float32"),
            "one grid always": (bytes_with_one_grid, "Per channel, each output"),
            "scales only": (bytes_of_scales_only, "its zero point take 4 + 4 bytes"),
            "scales of rows": (bytes_of_scales_of_rows, "zero point take 4 + 4 bytes"),
            "no output grid": (bytes_without_output_grid, "the output too"),
            "a float": (bytes_as_float, "return an int, not a float"),
        },
    },
    "ch04.ex4": {
        "right": right_lamp,
        "wrong": {
            "by its class": (lamp_by_class, "its class and attributes tell nothing"),
            "by attributes": (lamp_by_attributes, "you read an attribute"),
            "by the gradient": (lamp_by_gradient, "frozen flame still has parameters"),
            "by zero point 0": (lamp_by_zero_point, "may have any zero point"),
            "never shaded": (lamp_never_shaded, "gives no value below zero"),
            "never quantized": (lamp_that_never_quantizes, "takes quint8 only"),
            "by dtype only": (lamp_by_dtype_only, "only one has parameters"),
        },
    },
}
