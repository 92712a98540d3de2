"""Answers to the exercises of chapter 7: one that is right, and learners' mistakes."""

import torch

from qtorch_tutorial import repro


def spans(x, low, high, steps=127):
    q = torch.round(x / ((high - low) / steps)).long()
    return q.max(dim=1).values - q.min(dim=1).values


def right_steps(x):
    return spans(x, min(x.min().item(), 0), max(x.max().item(), 0))


def full_range(x):
    return spans(x, min(x.min().item(), 0), max(x.max().item(), 0), steps=255)


def grid_of_each_row(x):
    return torch.cat([right_steps(row[None]) for row in x])


def without_zero(x):
    return spans(x, x.min().item(), x.max().item())


def not_rounded(x):
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    return (x.amax(dim=1) - x.amin(dim=1)) / ((high - low) / 127)


def one_number(x):
    return right_steps(x).max()


def right_linear(x, weight, weight_scale, bias):
    x_hat, _ = on_grid(x)
    # In float64 the products of x_hat are exact enough to stand for the integers.
    return (x_hat @ (weight.double() * weight_scale).T + bias).float()


def on_grid(x):
    low, high = min(x.min().item(), 0), max(x.max().item(), 0)
    scale = torch.tensor((high - low) / 127)
    return torch.round(x * (1 / scale)).double() * scale, scale


def weights_only(x, weight, weight_scale, bias):
    return x @ (weight.float() * weight_scale).T + bias


def without_bias(x, weight, weight_scale, bias):
    return right_linear(x, weight, weight_scale, 0 * bias)


def zero_point_kept(x, weight, weight_scale, bias):
    x_hat, scale = on_grid(x)
    z = torch.round(-x.min().clamp(max=0) / scale)
    shifted = x_hat + z * scale
    return (shifted @ (weight.double() * weight_scale).T + bias).float()


def scaled_bias(x, weight, weight_scale, bias):
    x_hat, scale = on_grid(x)
    acc = torch.round(x_hat / scale) @ weight.double().T
    return ((acc + bias) * scale * weight_scale).float()


def one_scale(x, weight, weight_scale, bias):
    x_hat, scale = on_grid(x)
    return (torch.round(x_hat / scale) @ weight.double().T * scale + bias).float()


def narrow_sum(x, weight, weight_scale, bias):
    x_hat, scale = on_grid(x)
    steps = torch.round(x_hat / scale).to(torch.int8)
    acc = (steps[:, None] * weight).sum(dim=2)  # int8 products overflow
    return acc * scale * weight_scale + bias


def in_float64(x, weight, weight_scale, bias):
    return right_linear(x, weight, weight_scale, bias).double()


def right_guard(x):
    reach = x.abs().max(dim=1).values.sort().values
    bound = 3 * reach[len(reach) // 2]
    return torch.maximum(torch.minimum(x, bound), -bound)


def fixed_bound(x):
    return x.clamp(-1, 1)


def mean_reach(x):
    bound = 3 * x.abs().amax(dim=1).mean()
    return x.clamp(-bound, bound)


def three_sigma(x):
    return x.clamp(-3 * x.std(), 3 * x.std())


def one_sided(x):
    return x.clamp(max=3 * x.abs().amax(dim=1).median())


def in_place(x):
    bound = 3 * x.abs().amax(dim=1).median()
    return x.clamp_(-bound, bound)


def quantile(x):
    bound = x.abs().flatten().quantile(0.95)
    return x.clamp(-bound, bound)


def median_of_all(x):
    bound = 3 * x.abs().median()
    return x.clamp(-bound, bound)


def higher_quantile(x):
    bound = 3 * x.abs().amax(dim=1).quantile(0.6)
    return x.clamp(-bound, bound)


def rows_dropped(x):
    reach = x.abs().amax(dim=1)
    return x[reach <= 3 * reach.median()]


def row_errors(batch, fitted_to):
    with repro.quiet():
        observer = torch.ao.quantization.MinMaxObserver(reduce_range=True)
    observer(fitted_to)
    scale, zero_point = observer.calculate_qparams()
    fake = torch.fake_quantize_per_tensor_affine(
        batch, scale.item(), int(zero_point), 0, 255
    )
    return (fake - batch).norm(dim=1)


def right_choice(seen, batch):
    dynamic, static = row_errors(batch, batch), row_errors(batch, seen)
    return "dynamic" if dynamic.median() < static.median() else "static"


def total_error(seen, batch):
    dynamic, static = row_errors(batch, batch), row_errors(batch, seen)
    return "dynamic" if dynamic.norm() < static.norm() else "static"


def smaller_step(seen, batch):
    return "dynamic" if batch.max() < seen.max() else "static"


def tie_to_dynamic(seen, batch):
    dynamic, static = row_errors(batch, batch), row_errors(batch, seen)
    return "dynamic" if dynamic.median() <= static.median() else "static"


def median_of_all_errors(seen, batch):
    dynamic, static = (
        (on_full_grid(batch, fitted, steps=127) - batch).abs().median()
        for fitted in (batch, seen)
    )
    return "dynamic" if dynamic < static else "static"


def full_grids(seen, batch):
    dynamic, static = (
        (on_full_grid(batch, fitted, steps=255) - batch).norm(dim=1).median()
        for fitted in (batch, seen)
    )
    return "dynamic" if dynamic < static else "static"


def on_full_grid(x, fitted_to, steps):
    scale = fitted_to.max() / steps  # the least value of these data is about 0
    return (x / scale).round().clamp(0, 255) * scale


def fears_every_outlier(seen, batch):
    reach = batch.abs().amax(dim=1)
    if reach.max() > 3 * reach.median():
        return "static"
    return right_choice(seen, batch)


def always_dynamic(seen, batch):
    return "dynamic"


def the_module(seen, batch):
    return right_choice(seen, batch) == "dynamic"


ANSWERS = {
    "ch07.ex1": {
        "right": right_steps,
        "wrong": {
            "the full range": (full_range, "your grid has 255 steps"),
            "a grid for each row": (grid_of_each_row, "a grid of its own"),
            "a range without zero": (without_zero, "does not contain 0"),
            "not rounded": (not_rounded, "round x / scale first"),
            "one number": (one_number, "one number for each"),
        },
    },
    "ch07.ex2": {
        "right": right_linear,
        "wrong": {
            "weights only": (weights_only, "your input was never rounded"),
            "no bias": (without_bias, "the bias is missing"),
            "zero point not subtracted": (zero_point_kept, "subtract the zero point"),
            "bias scaled": (scaled_bias, "you scale the bias too"),
            "one scale forgotten": (one_scale, "both scales belong on it"),
            "sum in int8": (narrow_sum, "sum wide integers"),
            "float64 returned": (in_float64, "the lamp gives float32"),
        },
    },
    "ch07.ex3": {
        "right": right_guard,
        "wrong": {
            "a fixed bound": (fixed_bound, "you change good rows"),
            "mean instead of median": (
                mean_reach,
                "moved your idea of what is typical",
            ),
            "three sigma": (three_sigma, "your idea of what is typical"),
            "one side only": (one_sided, "clip both sides"),
            "in place": (in_place, "you change x itself"),
            "a quantile of all values": (quantile, "in a clean batch you change"),
            "median of all values": (median_of_all, "in a clean batch you change"),
            "a higher quantile": (higher_quantile, "in a batch with 7 of 16 rows"),
            "wild rows dropped": (rows_dropped, "of the shape of x"),
        },
    },
    "ch07.ex4": {
        "right": right_choice,
        "wrong": {
            "error of the whole batch": (total_error, "the median row does not care"),
            "smaller step wins": (smaller_step, "clamps most values"),
            "tie to dynamic": (tie_to_dynamic, "a tie goes to static"),
            "every outlier to static": (fears_every_outlier, "stretched by that row"),
            "median of all errors": (median_of_all_errors, "ten times too large"),
            "full range": (full_grids, "128 to 255 are free"),
            "always dynamic": (always_dynamic, "a tie goes to static"),
            "a bool": (the_module, 'return "static" or "dynamic"'),
        },
    },
}
