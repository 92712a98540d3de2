"""Answers to the exercises of chapter 3: one that is right, and learners' mistakes."""

import torch
from torch.ao import quantization as tq

LOW, HIGH = -32768, 32767


def right_dot(x, w):
    pairs = (x.int() * w.int()).reshape(-1, 2).sum(dim=1)
    return int(pairs.clamp(LOW, HIGH).sum())


def never_clamps(x, w):
    return int((x.int() * w.int()).sum())


def clamps_the_total(x, w):
    return min(max(never_clamps(x, w), LOW), HIGH)


def clamps_a_running_sum(x, w):
    total = 0
    for pair in (x.int() * w.int()).reshape(-1, 2).sum(dim=1).tolist():
        total = min(max(total + pair, LOW), HIGH)
    return total


def clamps_the_products(x, w):
    return int((x.int() * w.int()).clamp(LOW, HIGH).sum())


def signed_bytes(x, w):
    return int((x.to(torch.int8) * w).reshape(-1, 2).sum(1).clamp(LOW, HIGH).sum())


def unsigned_bytes(x, w):
    pairs = (x * w.to(torch.uint8)).reshape(-1, 2).sum(1)
    return int(pairs.clamp(LOW, HIGH).sum())


def wraps(x, w):
    products = x * w  # torch makes them int16
    return int((products[::2] + products[1::2]).sum())


def halves(x, w):
    products = (x.int() * w.int()).reshape(2, -1)
    return int(products.sum(dim=0).clamp(LOW, HIGH).sum())


def low_end_missed(x, w):
    pairs = (x.int() * w.int()).reshape(-1, 2).sum(dim=1)
    return int(pairs.clamp(-HIGH, HIGH).sum())


def tensor_of_the_sum(x, w):
    return torch.tensor(right_dot(x, w))


ACTIVATION = {"averaging_constant": 0.1, "dtype": torch.quint8, "reduce_range": True}
WEIGHT = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}


def build(activation=None, weight=None):
    """Return a function that returns the QConfig, with the members given."""

    def answer():
        return tq.QConfig(
            activation=activation or moving(),
            weight=weight or tq.PerChannelMinMaxObserver.with_args(**WEIGHT),
        )

    return answer


def moving(**changes):
    return tq.MovingAverageMinMaxObserver.with_args(**ACTIVATION | changes)


def per_channel(**changes):
    return tq.PerChannelMinMaxObserver.with_args(**WEIGHT | changes)


def right_qconfig():
    # No with_args: a function that builds an observer is a constructor too.
    return tq.QConfig(
        activation=lambda: tq.MovingAverageMinMaxObserver(**ACTIVATION),
        weight=lambda: tq.PerChannelMinMaxObserver(**WEIGHT),
    )


def instances():
    return tq.QConfig(
        activation=tq.MovingAverageMinMaxObserver(**ACTIVATION),
        weight=tq.PerChannelMinMaxObserver(**WEIGHT),
    )


def one_observer_for_all():
    observer = tq.MovingAverageMinMaxObserver(**ACTIVATION)
    return tq.QConfig(activation=lambda: observer, weight=per_channel())


def a_tuple():
    return moving(), per_channel()


def right_front(points):
    def beaten(p):
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    return sorted(p for p in points if not beaten(p))


def strictly_in_both(points):
    return sorted(
        p for p in points if not any(q[0] < p[0] and q[1] < p[1] for q in points)
    )


def two_ends(points):
    return sorted({min(points), min(points, key=lambda p: (p[1], p[0]))})


def largest(points):
    def beaten(p):
        return any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)

    return sorted(p for p in points if not beaten(p))


def unsorted(points):
    front = right_front(points)
    return [p for p in points if p in front]


def sorted_by_error(points):
    return right_front(points)[::-1]


def no_duplicates(points):
    return sorted(set(right_front(points)))


def ties_by_size_only(points):
    front, least = [], float("inf")
    for size, error in sorted(points, key=lambda p: p[0]):
        if error < least:
            front.append((size, error))
            least = error
    return front


def beaten_by_itself(points):
    return sorted(
        p for p in points if sum(q[0] <= p[0] and q[1] <= p[1] for q in points) == 1
    )


def sizes_only(points):
    return [size for size, _ in right_front(points)]


def neighbors_only(points):
    """Compare each point with the one before it, in the order of size."""
    front = []
    previous = (0, float("inf"))
    for p in sorted(points):
        if p[1] < previous[1] or p == previous:
            front.append(p)
        previous = p
    return front


def convex_hull(points):
    hull = []
    for p in right_front(points):
        while len(hull) >= 2 and p != hull[-1]:
            (a, b), (c, d) = hull[-2:]
            if (c - a) * (p[1] - b) > (d - b) * (p[0] - a) or (a, b) == (c, d):
                break
            hull.pop()
        hull.append(p)
    return hull


ANSWERS = {
    "ch03.ex1": {
        "right": right_dot,
        "wrong": {
            "no clamp": (never_clamps, "no pair sum was clamped"),
            "clamps only the sum": (clamps_the_total, "add their sums exactly"),
            "clamps as it adds": (clamps_a_running_sum, "add their sums exactly"),
            "clamps each product": (
                clamps_the_products,
                "a single product always fits",
            ),
            "products in int8": (signed_bytes, "needs 16 bits"),
            "products in uint8": (unsigned_bytes, "needs 16 bits"),
            "wraps around": (wraps, "int16 wraps around"),
            "first half with second": (halves, "not the two halves"),
            "symmetric clamp": (low_end_missed, "the lower end is -32768"),
            "a tensor": (tensor_of_the_sum, "return a Python int"),
        },
    },
    "ch03.ex2": {
        "right": right_qconfig,
        "wrong": {
            "instances": (instances, "not observer instances"),
            "one observer for all": (one_observer_for_all, "a new observer"),
            "a tuple": (a_tuple, "return a QConfig"),
            "full range": (build(moving(reduce_range=False)), "leaves out a bit"),
            "averaging constant forgotten": (
                build(moving(averaging_constant=0.01)),
                "yours is 0.01",
            ),
            "constant and range forgotten": (
                build(tq.MovingAverageMinMaxObserver),
                "both",
            ),
            "extremes kept": (
                build(tq.MinMaxObserver.with_args(reduce_range=True)),
                "a moving average forgets",
            ),
            "activation qint8": (
                build(moving(dtype=torch.qint8)),
                "the activation's dtype",
            ),
            "activation symmetric": (
                build(moving(qscheme=torch.per_tensor_symmetric, reduce_range=False)),
                "zero point",
            ),
            "members swapped": (build(per_channel(), moving()), "swapped"),
            "weight per tensor": (
                build(weight=tq.default_weight_observer),
                "one for the tensor",
            ),
            "weight quint8": (
                build(weight=per_channel(dtype=torch.quint8)),
                "the weight's dtype",
            ),
            "weight affine": (
                build(weight=per_channel(qscheme=torch.per_channel_affine)),
                "the weight is symmetric",
            ),
            "weight down the columns": (
                build(weight=per_channel(ch_axis=1)),
                "axis 0",
            ),
            "weight reduced too": (
                build(weight=per_channel(reduce_range=True)),
                "only the activation",
            ),
            "weight averaged": (
                build(
                    weight=tq.MovingAveragePerChannelMinMaxObserver.with_args(**WEIGHT)
                ),
                "keeps the extremes: its scales",
            ),
        },
    },
    "ch03.ex3": {
        "right": right_front,
        "wrong": {
            "smaller in both": (strictly_in_both, "enough to beat"),
            "only sorted by size": (ties_by_size_only, "enough to beat"),
            "only the ends": (two_ends, "more than its two ends"),
            "largest": (largest, "smaller is better"),
            "unsorted": (unsorted, "sort by size"),
            "sorted by error": (sorted_by_error, "sort by size"),
            "duplicates dropped": (no_duplicates, "do not beat each other"),
            "both duplicates dropped": (beaten_by_itself, "do not beat each other"),
            "sizes only": (sizes_only, "tuples (size, error)"),
            "convex hull": (convex_hull, "may bulge"),
            "neighbors only": (neighbors_only, "with every other"),
        },
    },
}
