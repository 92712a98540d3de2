"""Answers to the exercises of chapter 2: one that is right, and learners' mistakes."""

import math
import statistics
from itertools import pairwise

import torch

# ---- 2.1 --------------------------------------------------------------------------


def peak_right(sizes, batch):
    hidden, last = sizes[1:-1], sizes[-1]
    if not hidden:
        return 4 * batch * last
    steps = [2 * h for h in hidden]
    steps += [a + b for a, b in zip(hidden, sizes[2:], strict=True)]
    return 4 * batch * max(steps)


def peak_in_numbers(sizes, batch):
    return peak_right(sizes, batch) // 4


def peak_of_one_row(sizes, batch):
    return peak_right(sizes, 1)


def peak_nothing_freed(sizes, batch):
    return 4 * batch * (2 * sum(sizes[1:-1]) + sizes[-1])


def peak_of_the_largest(sizes, batch):
    return 4 * batch * max(sizes[1:])


def peak_with_the_input(sizes, batch):
    return 4 * batch * max(a + b for a, b in pairwise(sizes))


def peak_with_a_last_relu(sizes, batch):
    return 4 * batch * 2 * max(sizes[1:])


def peak_with_weights(sizes, batch):
    weights = sum((i + 1) * o for i, o in pairwise(sizes))
    return peak_right(sizes, batch) + 4 * weights


def peak_as_float(sizes, batch):
    return float(peak_right(sizes, batch))


# ---- 2.2 --------------------------------------------------------------------------


def two_sided(few, coins):
    """By torch's own binomial coefficients, in logarithms."""
    k = torch.arange(few + 1, dtype=torch.float64)
    n = torch.tensor(float(coins), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return 2 * torch.exp(ways - n * math.log(2)).sum().item()


def mcnemar_right(one, other, y):
    coins = [(a == t) for a, b, t in zip(one, other, y, strict=True)
             if (a == t) != (b == t)]  # fmt: skip
    heads = int(sum(coins))
    return min(1.0, two_sided(min(heads, len(coins) - heads), len(coins)))


def counts(one, other, y):
    won = ((one == y) & (other != y)).sum().item()
    return won, ((one != y) & (other == y)).sum().item()


def mcnemar_one_sided(one, other, y):
    won, lost = counts(one, other, y)
    return min(1.0, two_sided(min(won, lost), won + lost) / 2)


def mcnemar_above_one(one, other, y):
    won, lost = counts(one, other, y)
    return two_sided(min(won, lost), won + lost)


def mcnemar_of_predictions(one, other, y):
    won, lost = counts(one, other, y)
    return min(1.0, two_sided(min(won, lost), (one != other).sum().item()))


def mcnemar_of_the_first(one, other, y):
    won, lost = counts(one, other, y)
    return min(1.0, two_sided(won, won + lost))


def mcnemar_chi_square(one, other, y):
    won, lost = counts(one, other, y)
    if won + lost == 0:
        return 1.0
    return math.erfc(math.sqrt((won - lost) ** 2 / (won + lost) / 2))


def mcnemar_as_tensor(one, other, y):
    return torch.tensor(mcnemar_right(one, other, y))


# ---- 2.3 --------------------------------------------------------------------------


def sorted_ratios(first, second):
    return sorted(b / a for a, b in zip(first, second, strict=True))


def left_out(n, level=0.05):
    """How many values may lie beyond each end, by the whole binomial distribution."""
    chances = [math.comb(n, k) / 2**n for k in range(n + 1)]
    return max(k for k in range(n // 2) if 2 * sum(chances[: k + 1]) <= level)


def ends(values, outside):
    return values[outside], values[len(values) - 1 - outside]


def interval_right(first, second):
    return ends(sorted_ratios(first, second), left_out(len(first)))


def interval_of_all(first, second):
    return ends(sorted_ratios(first, second), 0)


def interval_one_too_narrow(first, second):
    return ends(sorted_ratios(first, second), left_out(len(first)) + 1)


def interval_one_too_wide(first, second):
    return ends(sorted_ratios(first, second), max(0, left_out(len(first)) - 1))


def interval_with_one_tail(first, second):
    return ends(sorted_ratios(first, second), left_out(len(first), level=0.1))


def interval_always_seven(first, second):
    return ends(sorted_ratios(first, second), 7)


def interval_upside_down(first, second):
    return interval_right(second, first)


def interval_of_sorted_times(first, second):
    ratios = [b / a for a, b in zip(sorted(first), sorted(second), strict=True)]
    return ends(sorted(ratios), left_out(len(first)))


def interval_unsorted(first, second):
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    return ends(ratios, left_out(len(first)))


def interval_high_first(first, second):
    return interval_right(first, second)[::-1]


def interval_of_the_mean(first, second):
    ratios = sorted_ratios(first, second)
    half = 2 * statistics.stdev(ratios) / math.sqrt(len(ratios))
    return statistics.mean(ratios) - half, statistics.mean(ratios) + half


def interval_as_list(first, second):
    return list(interval_right(first, second))


# ---- 2.4 --------------------------------------------------------------------------


def times(width, batch, weight_bytes, bandwidth, rate):
    products = batch * width * width
    moved = width * width * weight_bytes + 4 * (batch * width + batch * width)
    return 2 * products / rate, moved / bandwidth


def time_right(*given):
    return sorted(times(*given))[1]


def time_sum(*given):
    return sum(times(*given))


def time_least(*given):
    return min(times(*given))


def time_of_products(width, batch, weight_bytes, bandwidth, rate):
    return time_right(width, batch, weight_bytes, bandwidth, 2 * rate)


def time_of_weights(width, batch, weight_bytes, bandwidth, rate):
    operations = 2 * batch * width**2
    return max(operations / rate, weight_bytes * width**2 / bandwidth)


def time_without_output(width, batch, weight_bytes, bandwidth, rate):
    moved = weight_bytes * width**2 + 4 * batch * width
    return max(2 * batch * width**2 / rate, moved / bandwidth)


def time_with_small_activations(width, batch, weight_bytes, bandwidth, rate):
    moved = weight_bytes * (width**2 + 2 * batch * width)
    return max(2 * batch * width**2 / rate, moved / bandwidth)


def time_in_microseconds(*given):
    return 1e6 * time_right(*given)


ANSWERS = {
    "ch02.ex1": {
        "right": peak_right,
        "wrong": {
            "numbers, not bytes": (peak_in_numbers, "a float32 takes 4 bytes"),
            "one row": (peak_of_one_row, "every row of the batch"),
            "nothing freed": (peak_nothing_freed, "freed after its module"),
            "the largest tensor": (peak_of_the_largest, "stand side by side"),
            "with the input": (peak_with_the_input, "own input does not count"),
            "a ReLU at the end": (peak_with_a_last_relu, "no ReLU follows the last"),
            "with the weights": (peak_with_weights, "weights were there before"),
            "a float": (peak_as_float, "return an int, not float"),
        },
    },
    "ch02.ex2": {
        "right": mcnemar_right,
        "wrong": {
            "one-sided": (mcnemar_one_sided, "two-sided"),
            "more than certain": (mcnemar_above_one, "a chance is at most 1"),
            "predictions differ": (mcnemar_of_predictions, "both get wrong is no coin"),
            "the first one's wins": (mcnemar_of_the_first, "the smaller count"),
            "chi-square": (mcnemar_chi_square, "exact p is 0.375"),
            "a tensor": (mcnemar_as_tensor, "return a float, not Tensor"),
        },
    },
    "ch02.ex3": {
        "right": interval_right,
        "wrong": {
            "least and greatest": (interval_of_all, "more may lie outside"),
            "one too many outside": (interval_one_too_narrow, "too many outside"),
            "one too few outside": (interval_one_too_wide, "too few outside"),
            "one tail of 5 %": (interval_with_one_tail, "both ends together"),
            "always seven": (interval_always_seven, "20 rounds: too many"),
            "upside down": (interval_upside_down, "not first over second"),
            "sorted times": (interval_of_sorted_times, "sorted times are no pairs"),
            "unsorted ratios": (interval_unsorted, "sort the ratios"),
            "high before low": (interval_high_first, "the lower end first"),
            "mean and two errors": (interval_of_the_mean, "expected ("),
            "a list": (interval_as_list, "return a tuple"),
        },
    },
    "ch02.ex4": {
        "right": time_right,
        "wrong": {
            "the sum": (time_sum, "not the sum"),
            "the faster limit": (time_least, "not the faster"),
            "products only": (time_of_products, "two operations for each weight"),
            "weights only": (time_of_weights, "the input and the output move too"),
            "no output": (time_without_output, "input *and* output move"),
            "int8 activations": (time_with_small_activations, "stay float32"),
            "microseconds": (time_in_microseconds, "seconds: got"),
        },
    },
}
