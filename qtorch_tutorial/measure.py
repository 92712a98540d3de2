"""One number about one model: bytes, error, accuracy, time. The unit is in the name.

A time is never trusted alone. :func:`latency` runs its candidates in turns, round by
round, compares them within each round, and gives the ratio with an interval.
"""

import gc
import io
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from qtorch_tutorial.repro import threads as computing_with


def size_bytes(model: nn.Module) -> int:
    """Count the bytes of all numbers a model has to hold, packed weights included.

    torch hides packed weights from ``parameters()`` and ``buffers()``. They are
    unpacked here and counted as the kernels keep them: an int8 for each weight, a
    float32 and an int32 for each scale and zero point, a float32 for each bias, and 8
    bytes for the output's scale and zero point. Padding and row sums that a
    kernel keeps for its own use cannot be read from Python and are not counted.

    Shared tensors and modules count once.

    Examples
    --------
    >>> size_bytes(nn.Linear(100, 10))  # (100 * 10 + 10) * 4
    4040
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    return total + sum(_packed_bytes(m) for m in model.modules())


def _packed_bytes(module: nn.Module) -> int:
    """Bytes that one module holds in a packed weight; 0 if it has none."""
    # The container inside a module has the attribute too, but no weight().
    if not (hasattr(module, "_packed_params") and hasattr(module, "weight")):
        return 0
    weight, bias = module.weight(), module.bias()
    if weight.is_quantized:
        per_channel = weight.qscheme() in (
            torch.per_channel_affine,
            torch.per_channel_symmetric,
        )
        grids = len(weight.q_per_channel_scales()) if per_channel else 1
        total = weight.numel() + 8 * grids
    else:
        total = weight.numel() * 2  # float16 inside, unpacked as float32
    # A dynamic module inherits the output's scale and zero point and never uses them.
    return total + (0 if bias is None else 4 * bias.numel()) + 8


def file_bytes(model: nn.Module) -> int:
    """Count the bytes of the state dict as ``torch.save`` writes it.

    Examples
    --------
    >>> 4040 < file_bytes(nn.Linear(100, 10)) < 8000
    True
    """
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def recorded(fn: Callable[[], object], *, memory: bool = False) -> profile:
    """Call ``fn`` twice and return what torch's profiler recorded of the second call.

    What is set up once, at the first call, is not recorded.

    Examples
    --------
    >>> x = torch.zeros(10)
    >>> [event.name for event in recorded(lambda: x + x).events()]
    ['aten::add']
    """
    # At its default level the profiler logs lines with the time of day. It reads the
    # level at its first use in a process.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    fn()
    # acc_events: without it torch 2.11 warns that another cycle would clear the events.
    activities = [ProfilerActivity.CPU]
    with profile(
        activities=activities, profile_memory=memory, acc_events=True
    ) as record:
        fn()
    return record


def peak_bytes(fn: Callable[[], object]) -> int:
    """Count the most bytes of tensors alive at once that a call of ``fn`` allocates.

    What was allocated before the call does not count. The allocations come from torch's
    profiler, so memory that a kernel manages on its own is not seen.

    Examples
    --------
    >>> x = torch.zeros(1000)
    >>> peak_bytes(lambda: x + x)
    4000
    """
    record = recorded(fn, memory=True)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    moves = [e for e in events if e.get("name") == "[memory]"]
    alive = peak = 0
    for event in sorted(moves, key=lambda e: e["args"]["Ev Idx"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise ratio in decibels: bigger is better.

    ``10 log10(sum(reference**2) / sum((reference - approximation)**2))``; infinite if
    the two are equal.

    Examples
    --------
    A noise of a tenth of the signal is 20 dB:

    >>> round(sqnr_db(torch.ones(5), torch.full((5,), 1.1)), 3)
    20.0
    """
    error = relative_error(reference, approximation)
    return math.inf if error == 0 else -20 * math.log10(error)


def relative_error(reference: Tensor, approximation: Tensor) -> float:
    """Norm of the difference over the norm of the reference, a pure number.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> round(relative_error(torch.ones(5), torch.full((5,), 1.1)), 3)
    0.1
    """
    _check_same_shape(reference, approximation)
    reference, difference = reference.double(), (reference - approximation).double()
    return (difference.norm() / reference.norm()).item()


def max_abs_error(reference: Tensor, approximation: Tensor) -> float:
    """Give the largest absolute difference, in the unit of the tensors.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> max_abs_error(torch.zeros(2), torch.tensor([0.5, -1.0]))
    1.0
    """
    _check_same_shape(reference, approximation)
    return (reference - approximation).abs().max().item()


def _check_same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"the shapes differ: {tuple(one.shape)} and {tuple(other.shape)}"
        )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Give the share of rows whose greatest score is at the right class, 0 to 1.

    Parameters
    ----------
    model : nn.Module
        Maps (batch, features) to class scores (batch, classes).
    x : float32 tensor, shape (batch, features)
    y : int64 tensor, shape (batch,)

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> accuracy(nn.Identity(), x, torch.tensor([0, 0]))
    0.5
    """
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).double().mean().item()


@dataclass(frozen=True)
class Latency:
    """How long one candidate takes, and how that compares with the first.

    Attributes
    ----------
    median_us : float
        Median time of a call, in microseconds.
    spread_us : float
        Interquartile range of the time of a call, in microseconds.
    ratio : float
        Its time over the first candidate's, median over the rounds.
    low, high : float
        Interval that holds the true ratio with a confidence of at least 95 %.
    """

    median_us: float
    spread_us: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Say "slower" or "faster" than the first, or "no difference".

        Examples
        --------
        >>> Latency(10.0, 1.0, 0.98, 0.93, 1.04).verdict
        'no difference'
        """
        if self.low <= 1 <= self.high:
            return "no difference"
        return "faster" if self.high < 1 else "slower"


def latency(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 27,
    threads: int = 1,
    block_us: float = 500.0,
) -> dict[str, Latency]:
    """Time several callables against each other.

    Each round times every candidate once, in a drawn order or in the reverse of the
    order before, so that a slow moment of the machine falls on all alike and each
    comes first as often as last. A candidate's turn is a block of as many calls as fit
    into ``block_us`` (at least one). Ratios are taken within a round; their interval is
    that of the median by order statistics, which assumes no distribution.

    The interval is about these callables as they lie in memory. Two copies of one model
    can truly differ by some percent: to compare two *ways* of making a model, make each
    several times.

    Parameters
    ----------
    callables : mapping of str to zero-argument callable
        The first one is what the others are compared with.
    rounds : int, at least 6
        27 rounds give a true confidence of 98 %: the first order statistics whose
        confidence is not below 95 %.
    threads : int
        Threads torch computes with while it is timed.
    block_us : float
        Length of a turn in microseconds.

    Returns
    -------
    dict of str to Latency
        In the order given. The first one's ratio is 1, its interval [1, 1].

    Raises
    ------
    ValueError
        If there is no callable, or there are fewer than 6 rounds.

    Examples
    --------
    >>> table = latency({"once": lambda: sum(range(500)),
    ...                  "twenty times": lambda: sum(range(10_000))})
    >>> table["twenty times"].verdict
    'slower'
    """
    if not callables:
        raise ValueError("give at least one callable to time")
    if rounds < 6:
        raise ValueError(f"an interval of 95 % needs at least 6 rounds, got {rounds}")
    names = list(callables)
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    with computing_with(threads), torch.no_grad():
        calls = {name: _calls_in(fn, block_us) for name, fn in callables.items()}
        shuffle = random.Random(0).shuffle
        gc.disable()
        try:
            order = list(names)
            for n in range(rounds):
                order = order[::-1]
                if n % 2 == 0:
                    shuffle(order)
                for name in order:
                    times[name].append(_block_us(callables[name], calls[name]))
        finally:
            if collecting:
                gc.enable()
    return {name: _summary(times[name], times[names[0]]) for name in names}


def _calls_in(fn: Callable[[], object], block_us: float) -> int:
    """Warm ``fn`` up and see how many of its calls fill a block."""
    fn()
    once = min(_block_us(fn, 1) for _ in range(3))
    return max(1, round(block_us / once))


def _block_us(fn: Callable[[], object], calls: int) -> float:
    """Microseconds for one call, from a block of ``calls`` of them."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        fn()
    return max(time.perf_counter_ns() - start, 1) / calls / 1000


def _summary(times: list[float], first: list[float]) -> Latency:
    """Median and spread of ``times``, and their ratio to ``first`` round by round."""
    ratios = sorted(t / f for t, f in zip(times, first, strict=True))
    outside = _outside(len(ratios))
    quarters = statistics.quantiles(times, n=4)
    return Latency(
        median_us=statistics.median(times),
        spread_us=quarters[2] - quarters[0],
        ratio=statistics.median(ratios),
        low=ratios[outside],
        high=ratios[-1 - outside],
    )


def _outside(n: int) -> int:
    """How many of ``n`` sorted values may lie beyond each end of a 95 % interval.

    Each value is above the true median with probability one half, so the number below
    it is binomial: leave out as many on each side as keeps 95 % inside.
    """
    tail, k = 0.0, 0
    while True:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 0.05:
            return k - 1
        k += 1
