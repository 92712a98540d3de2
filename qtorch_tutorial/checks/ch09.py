"""The checks of chapter 9: count bytes, read an interval, weigh bytes, choose."""

from collections.abc import Callable

import pandas as pd
import torch

from qtorch_tutorial import convert, measure, models
from qtorch_tutorial.checks import Wrong, answer_of

NETWORKS = ((784, 256, 256, 10), (20, 30), (5, 7, 3, 11))
INTERVALS = {
    (0.5, 0.8): "faster",
    (1.2, 3.0): "slower",
    (0.9, 1.1): "no difference",
    (0.4, 1.1): "no difference",
    (0.95, 1.9): "no difference",
    (1.0, 1.5): "no difference",
    (0.8, 1.0): "no difference",
}


def ex1(predict_bytes: Callable) -> None:
    """Check exercise 9.1: the bytes equal those of real, converted networks."""
    for sizes in NETWORKS:
        rng = torch.Generator().manual_seed(0)
        model = models.make_tale_network(sizes, rng=rng)
        rows = torch.rand(8, sizes[0], generator=rng)
        for form in (convert.FLOAT, convert.DYNAMIC, convert.STATIC):
            said = answer_of(predict_bytes, sizes, form.name)
            if not isinstance(said, int):
                raise Wrong(f"return an int, not {type(said).__name__}")
            weighed = measure.size_bytes(form.make(model, rows))
            if said != weighed:
                where = f"{form.name} form of sizes {sizes}"
                hint = _why(form.name, sizes, said - weighed)
                raise Wrong(f"the {where} holds {weighed} bytes, not {said}{hint}")


def _why(form: str, sizes: tuple[int, ...], excess: int) -> str:
    """Name the mistake behind a count that is off by ``excess`` bytes."""
    layers, biases = len(sizes) - 1, sum(sizes[1:])
    if form == "float":
        return ": count the biases too" if excess == -4 * biases else ""
    mistakes = {
        -4 * biases: "count the biases too",
        -3 * biases: "a bias stays float32 and takes 4 bytes",
        -8 * layers: "the grid of each layer's output is missing",
    }
    if form == "static":
        mistakes |= {
            -12: "the 12 bytes at the entrance are missing",
            12 * (layers - 1): "the 12 bytes stand once, at the entrance",
            8 * (layers - biases): "static has one grid for each row of a weight",
        }
    if form == "dynamic":
        mistakes |= {
            12: "only the static form has 12 bytes at the entrance",
            8 * (biases - layers): "dynamic has one grid for each weight, not each row",
        }
    return ": " + mistakes[excess] if excess in mistakes else ""


def ex2(verdict: Callable) -> None:
    """Check exercise 9.2: a verdict needs an interval without 1."""
    for (low, high), expected in INTERVALS.items():
        said = answer_of(verdict, low, high)
        where = f"[{low}, {high}]"
        if said not in ("faster", "slower", "no difference"):
            raise Wrong(f"return one of the three verdicts, not {said!r}")
        if said == expected:
            continue
        if "no difference" not in (said, expected):
            raise Wrong(f"{where}: less time than float is faster, not slower")
        if 1.0 in (low, high):
            raise Wrong(f"{where} contains 1 at its end: the ends are included")
        if expected == "no difference":
            raise Wrong(f"{where} contains 1: no difference, wherever its middle is")
        raise Wrong(f"{where} does not contain 1: that is {expected!r}")


def ex3(gain: Callable) -> None:
    """Check exercise 9.3: the gain against counts made by hand, and its two limits."""
    # A layer 2 wide with 1 row: 16 + 8 + 8 bytes in float, 4 + 8 + 8 with int8 weights.
    for width, batch, expected in ((2, 1, 32 / 20), (2, 4, 80 / 68), (8, 1, 320 / 128)):
        said = answer_of(gain, width, batch)
        if not isinstance(said, float):
            raise Wrong(f"return a float, not {type(said).__name__}")
        if abs(said - expected) <= 1e-6 * expected:
            continue
        one_side = (4 * width + 4 * batch) / (width + 4 * batch)
        no_batch = (4 * width + 8) / (width + 8)
        mistakes = {
            1 / expected: "turn your ratio over: int8 moves fewer bytes, so it gains",
            4.0: "it is 4 only without activations: they stay float32 and move too",
            one_side: "count the input and the output, not one of them",
            no_batch: "every row of the batch has an input and an output",
        }
        for mistake, message in mistakes.items():
            if abs(said - mistake) <= 1e-6 * mistake:
                raise Wrong(f"width {width}, batch {batch}: {message}")
        raise Wrong(
            f"width {width}, batch {batch}: expected {expected:.4g}, got {said:.4g}"
        )
    if not answer_of(gain, 10**6, 1) > 3.99 > 1.01 > answer_of(gain, 1, 10**6):
        raise Wrong("the gain must approach 4 for a wide layer and 1 for a large batch")


def ex4(pick: Callable) -> None:
    """Check exercise 9.4: tables in which every rule decides once."""
    table = pd.DataFrame(
        {
            "size_bytes": [400, 100, 120, 120],
            "accuracy": [0.875, 0.75, 0.5, 0.625],
            "latency_us": [40.0, 30.0, 10.0, 20.0],
        },
        index=["float", "dynamic", "static", "fused"],
    )
    cases = (
        (500, 1.0, "static", "the fastest that fits is wanted, not the smallest"),
        (110, 1.0, "dynamic", "it holds more than max_bytes"),
        (500, 0.3, "fused", "it loses more than max_loss"),
        (500, 0.0625, "float", "it loses more than max_loss"),
        (500, 0.25, "fused", "a loss of exactly max_loss is allowed"),
        (100, 1.0, "dynamic", "a size of exactly max_bytes is allowed"),
    )
    _picks(pick, table, cases)
    # Float need not stand first, and another form may be more accurate.
    turned = table.loc[["static", "fused", "dynamic", "float"]].copy()
    named = "the yardstick is the row named float, wherever it stands"
    _picks(pick, turned, ((500, 0.0625, "float", named),))
    turned.loc["fused", "accuracy"] = 1.0
    cases = (
        (110, 0.125, "dynamic", "float is the yardstick, not the most accurate form"),
        (500, 0.0625, "fused", "to be more accurate than float is no loss"),
    )
    _picks(pick, turned, cases)
    _refuses(pick, table, max_bytes=99, max_loss=1.0)
    _refuses(pick, table, max_bytes=110, max_loss=0.0625)


def _picks(pick: Callable, table: pd.DataFrame, cases: tuple) -> None:
    """Raise Wrong unless ``pick`` returns what each case expects."""
    for max_bytes, max_loss, expected, why in cases:
        limits = f"max_bytes={max_bytes}, max_loss={max_loss}"
        try:
            said = answer_of(pick, table.copy(), max_bytes=max_bytes, max_loss=max_loss)
        except (ValueError, KeyError) as error:
            raise Wrong(
                f"{limits}: {expected!r} fits ({why}), got {error!r}"
            ) from error
        if not isinstance(said, str):
            raise Wrong(f"return the name of a form, not {type(said).__name__}")
        if said != expected:
            raise Wrong(f"{limits}: {expected!r}, not {said!r}: {why}")


def _refuses(pick: Callable, table: pd.DataFrame, **limits: float) -> None:
    """Raise Wrong unless ``pick`` raises a ValueError where nothing fits."""
    try:
        said = pick(table.copy(), **limits)
    except ValueError:
        return
    raise Wrong(f"nothing fits {limits}: raise a ValueError, do not return {said!r}")
