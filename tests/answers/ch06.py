"""Answers to the exercises of chapter 6: one that is right, and learners' mistakes."""

import torch


def right_grid(low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 127
    return scale, min(max(round(-low / scale), 0), 127)


def full_range(low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return scale, round(-low / scale)


def fence_posts(low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 128
    return scale, round(-low / scale)


def not_widened(low, high):
    scale = (high - low) / 127
    return scale, min(max(round(-low / scale), 0), 127)


def cut_off(low, high):
    scale, _ = right_grid(low, high)
    return scale, int(-min(low, 0.0) / scale)


def wrong_sign(low, high):
    scale, zero_point = right_grid(low, high)
    return scale, -zero_point


def float_zero_point(low, high):
    scale, _ = right_grid(low, high)
    return scale, -min(low, 0.0) / scale


def right_requantize(acc, bias, s_x, s_w, s_y, z_y):
    unit = s_x * s_w
    value = (acc.float() + bias / unit) * (unit / s_y)
    return torch.clamp(value.round() + z_y, 0, 255).to(torch.uint8)


def inverted_multiplier(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_y / (s_x * s_w))
    return torch.clamp(value.round() + z_y, 0, 255).to(torch.uint8)


def truncates(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_x * s_w / s_y)
    return torch.clamp(value.int() + z_y, 0, 255).to(torch.uint8)


def half_up(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_x * s_w / s_y)
    return torch.clamp(torch.floor(value + 0.5) + z_y, 0, 255).to(torch.uint8)


def zero_point_first(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_x * s_w / s_y)
    return torch.clamp((value + z_y).round(), 0, 255).to(torch.uint8)


def hidden_relu(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_x * s_w / s_y)
    return torch.clamp(value.round() + z_y, z_y, 255).to(torch.uint8)


def wraps_around(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias / (s_x * s_w)) * (s_x * s_w / s_y)
    return ((value.round().int() + z_y) % 256).to(torch.uint8)


def raw_bias(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + bias) * (s_x * s_w / s_y)
    return torch.clamp(value.round() + z_y, 0, 255).to(torch.uint8)


def integer_bias(acc, bias, s_x, s_w, s_y, z_y):
    value = (acc + torch.round(bias / (s_x * s_w))) * (s_x * s_w / s_y)
    return torch.clamp(value.round() + z_y, 0, 255).to(torch.uint8)


def one_scale(acc, bias, s_x, s_w, s_y, z_y):
    return right_requantize(acc, bias, s_x, s_w.max(), s_y, z_y)


def left_float(acc, bias, s_x, s_w, s_y, z_y):
    return right_requantize(acc, bias, s_x, s_w, s_y, z_y).float()


def right_rows(w):
    largest = w.abs().amax(dim=1)
    return (largest < largest.max() / 2).nonzero().flatten().tolist()


def rows_that_lose(w):
    gain = right_rows(w)
    return [j for j in range(len(w)) if j not in gain]


def half_included(w):
    largest = w.abs().amax(dim=1)
    return (largest <= largest.max() / 2).nonzero().flatten().tolist()


def signed_maximum(w):
    largest = w.amax(dim=1)
    return (largest < largest.max() / 2).nonzero().flatten().tolist()


def columns(w):
    return right_rows(w.T)


def mask(w):
    largest = w.abs().amax(dim=1)
    return (largest < largest.max() / 2).tolist()


def as_tensor(w):
    return torch.tensor(right_rows(w))


def right_choice(layer, pool):
    y = layer(pool)
    return pool[[y.amin(dim=1).argmin().item(), y.amax(dim=1).argmax().item()]]


def first_rows(layer, pool):
    return pool[:4]


def brightest(layer, pool):
    return pool[pool[:, 0].argsort(descending=True)[:4]]


def only_the_high_end(layer, pool):
    return pool[layer(pool).amin(dim=1).argsort(descending=True)[:4]]


def made_up(layer, pool):
    return 2 * right_choice(layer, pool)


def all_rows(layer, pool):
    return pool


def numbers(layer, pool):
    return layer(pool).amax(dim=1).argsort()[-4:]


ANSWERS = {
    "ch06.ex1": {
        "right": right_grid,
        "wrong": {
            "the full range": (full_range, "divide by 255"),
            "integers counted, not steps": (fence_posts, "divide by 128"),
            "range without zero": (not_widened, "widen it to zero"),
            "zero point cut off, not rounded": (cut_off, "1 too low"),
            "zero point with the wrong sign": (wrong_sign, "too low"),
            "zero point left a float": (float_zero_point, "is an integer"),
        },
    },
    "ch06.ex2": {
        "right": right_requantize,
        "wrong": {
            "multiplier upside down": (inverted_multiplier, "multiply by"),
            "cuts instead of rounding": (truncates, "round to the nearest"),
            "rounds halves up": (half_up, "even integer"),
            "zero point before rounding": (zero_point_first, "before you add"),
            "clamps at the zero point": (hidden_relu, "not at the zero point"),
            "wraps around": (wraps_around, "before the cast"),
            "bias on the wrong scale": (raw_bias, "bias is a float"),
            "bias rounded, as in QNNPACK": (integer_bias, "do not round that"),
            "one scale for all rows": (one_scale, "its own s_w"),
            "floats returned": (left_float, "uint8"),
        },
    },
    "ch06.ex3": {
        "right": right_rows,
        "wrong": {
            "the loud rows": (rows_that_lose, "keep a coarse step"),
            "exactly half counted": (half_included, "not less than half"),
            "sign forgotten": (signed_maximum, "largest absolute value"),
            "columns": (columns, "these are columns"),
            "a mask": (mask, "row numbers (int)"),
            "a tensor": (as_tensor, "return a list"),
        },
    },
    "ch06.ex4": {
        "right": right_choice,
        "wrong": {
            "the first rows": (first_rows, "both ends"),
            "only large outputs": (only_the_high_end, "the low end"),
            "rows made up": (made_up, "not a row of the pool"),
            "the whole pool": (all_rows, "choose 1 to 4"),
            "row numbers": (numbers, "the rows themselves"),
        },
    },
}
