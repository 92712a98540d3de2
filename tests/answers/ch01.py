"""Answers to the exercises of chapter 1: one that is right, and learners' mistakes."""

import math

import torch

from qtorch_tutorial import affine, measure


def right_list(x, scale, zero_point, bits):
    grid = affine.QParams(
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(zero_point, dtype=torch.int32),
        0,
        2**bits - 1,
    )
    return affine.quantize(torch.tensor(x, dtype=torch.float64), grid).q.tolist()


def multiplies(x, scale, zero_point, bits):
    return [min(max(round(v * scale) + zero_point, 0), 2**bits - 1) for v in x]


def cuts_off(x, scale, zero_point, bits):
    return [min(max(int(v / scale) + zero_point, 0), 2**bits - 1) for v in x]


def floor_divides(x, scale, zero_point, bits):
    return [min(max(int(v // scale) + zero_point, 0), 2**bits - 1) for v in x]


def rounds_half_up(x, scale, zero_point, bits):
    steps = [math.floor(v / scale + 0.5) for v in x]
    return [min(max(q + zero_point, 0), 2**bits - 1) for q in steps]


def adds_first(x, scale, zero_point, bits):
    return [min(max(round(v / scale + zero_point), 0), 2**bits - 1) for v in x]


def clamps_first(x, scale, zero_point, bits):
    return [min(max(round(v / scale), 0), 2**bits - 1) + zero_point for v in x]


def no_lower_end(x, scale, zero_point, bits):
    return [min(round(v / scale) + zero_point, 2**bits - 1) for v in x]


def one_integer_too_many(x, scale, zero_point, bits):
    return [min(max(round(v / scale) + zero_point, 0), 2**bits) for v in x]


def always_a_byte(x, scale, zero_point, bits):
    return [min(max(round(v / scale) + zero_point, 0), 255) for v in x]


def left_floats(x, scale, zero_point, bits):
    return [float(q) for q in right_list(x, scale, zero_point, bits)]


def right_correction(product, x_sums, w_sums, z_x, z_w, k):
    acc = product.clone()
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            acc[i, j] += k * z_x * z_w - z_x * w_sums[j] - z_w * x_sums[i]
    return acc


def no_fourth_term(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * w_sums - z_w * x_sums[:, None]


def fourth_term_once(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * w_sums - z_w * x_sums[:, None] + z_x * z_w


def fourth_term_subtracted(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * w_sums - z_w * x_sums[:, None] - k * z_x * z_w


def sums_swapped(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * x_sums[:, None] - z_w * w_sums + k * z_x * z_w


def only_the_input(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * w_sums


def broadcast_along_outputs(product, x_sums, w_sums, z_x, z_w, k):
    return product - z_x * w_sums - z_w * x_sums + k * z_x * z_w


def sums_down_the_columns(product, x_sums, w_sums, z_x, z_w, k):
    x_part = x_sums if len(x_sums) == product.shape[1] else x_sums[:, None]
    return product - z_x * w_sums - z_w * x_part + k * z_x * z_w


def floats(product, x_sums, w_sums, z_x, z_w, k):
    return right_correction(product, x_sums, w_sums, z_x, z_w, k).float()


def pairs_and_db(w, sizes, *, down=False):
    for bits in range(2, 9):
        for size in sizes:
            rows = (w.T if down else w).reshape(-1, size)
            grid = affine.choose_qparams(
                rows, bits=bits, signed=True, symmetric=True, axis=0
            )
            rows_hat = affine.fake_quantize(rows, grid)
            yield bits, size, measure.sqnr_db(rows, rows_hat)


def right_choice(w, least_db, sizes):
    good = [(b + 32 / g, b, g) for b, g, db in pairs_and_db(w, sizes) if db >= least_db]
    return min(good)[1:]


def fewest_bits(w, least_db, sizes):
    good = [(b, -g) for b, g, db in pairs_and_db(w, sizes) if db >= least_db]
    return min(good)[0], -min(good)[1]


def fewest_scales(w, least_db, sizes):
    good = [(-g, b) for b, g, db in pairs_and_db(w, sizes) if db >= least_db]
    return min(good)[1], -min(good)[0]


def scale_of_one_byte(w, least_db, sizes):
    good = [(b + 8 / g, b, g) for b, g, db in pairs_and_db(w, sizes) if db >= least_db]
    return min(good)[1:]


def best_precision(w, least_db, sizes):
    return max((db, b, g) for b, g, db in pairs_and_db(w, sizes))[1:]


def cheapest_of_all(w, least_db, sizes):
    return 2, max(sizes)


def groups_down_the_columns(w, least_db, sizes):
    table = pairs_and_db(w, [g for g in sizes if g <= len(w)], down=True)
    return min((b + 32 / g, b, g) for b, g, db in table if db >= least_db)[1:]


def with_the_cost(w, least_db, sizes):
    bits, size = right_choice(w, least_db, sizes)
    return bits, size, bits + 32 / size


ANSWERS = {
    "ch01.ex1": {
        "right": right_list,
        "wrong": {
            "multiplies by the scale": (multiplies, "divide by the scale"),
            "cuts off": (cuts_off, "do not cut off"),
            "rounds down": (floor_divides, "do not cut off"),
            "rounds halves up": (rounds_half_up, "even integer"),
            "zero point before rounding": (adds_first, "before you add"),
            "clamps before the zero point": (clamps_first, "before you clamp"),
            "no lower end": (no_lower_end, "clamp at 0"),
            "posts counted as gaps": (one_integer_too_many, "2**3 - 1"),
            "always eight bits": (always_a_byte, "3 bits"),
            "floats": (left_floats, "must hold integers"),
        },
    },
    "ch01.ex2": {
        "right": right_correction,
        "wrong": {
            "only the term of the chapter": (only_the_input, "the weight's zero point"),
            "fourth term forgotten": (no_fourth_term, "leave a fourth term"),
            "fourth term subtracted": (fourth_term_subtracted, "leave a fourth term"),
            "fourth term once": (fourth_term_once, "k * z_x * z_w"),
            "sums swapped": (sums_swapped, "the weight's row sums"),
            "sum along the outputs": (broadcast_along_outputs, "do not fit"),
            "fits by chance": (sums_down_the_columns, "its row of the result"),
            "floats": (floats, "accumulator is int32"),
        },
    },
    "ch01.ex3": {
        "right": right_choice,
        "wrong": {
            "fewest bits": (fewest_bits, "once you count the scales"),
            "fewest scales": (fewest_scales, "once you count the bits"),
            "a scale of one byte": (scale_of_one_byte, "takes 32 bits, not 8"),
            "as precise as can be": (best_precision, "each group 32 bits"),
            "precision ignored": (cheapest_of_all, "are wanted"),
            "groups down the columns": (groups_down_the_columns, "down the columns"),
            "the cost too": (with_the_cost, "two integers"),
        },
    },
}
