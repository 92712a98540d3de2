"""measure: each number against a count or a formula written out by hand."""

import io
import itertools
import math
import statistics
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.ao import quantization as tq

from qtorch_tutorial import convert, measure
from qtorch_tutorial.measure import Latency


@pytest.fixture
def layer():
    return nn.Linear(100, 10)


def test_packed_weights_are_counted_per_tensor_and_per_channel(layer):
    rows = torch.rand(32, 100)
    dynamic = convert.to_dynamic(layer)
    per_channel = convert.to_dynamic(layer, qconfig=tq.per_channel_dynamic_qconfig)
    static = convert.to_static(layer, calibration=rows)
    assert measure.size_bytes(layer) == 1000 * 4 + 10 * 4
    assert measure.size_bytes(dynamic) == 1000 + 10 * 4 + 8 + 8
    assert measure.size_bytes(per_channel) == 1000 + 10 * 4 + 10 * 8 + 8
    assert measure.size_bytes(static) == 1000 + 10 * 4 + 10 * 8 + 8 + 12


def test_float16_weights_are_two_bytes_each(layer):
    made = convert.to_dynamic(layer, qconfig=tq.float16_dynamic_qconfig)
    assert measure.size_bytes(made) == 1000 * 2 + 10 * 4 + 8


def test_what_is_shared_counts_once(layer):
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert measure.size_bytes(twice) == measure.size_bytes(layer)
    tied = nn.Linear(100, 10)
    tied.weight = layer.weight
    assert measure.size_bytes(nn.Sequential(layer, tied)) == 4040 + 40


def test_buffers_are_counted():
    assert measure.size_bytes(nn.BatchNorm1d(10)) == 4 * 10 * 4 + 8


def test_file_bytes_is_what_torch_save_writes(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert measure.file_bytes(layer) == len(file.getvalue())


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x + x, 4000),
        (lambda x: (x + x) * x, 8000),
        (lambda x: x.sum() and None, 4),
        (lambda x: x.view(10, 100), 0),
    ],
    ids=["one", "two-at-once", "scalar", "view"],
)
def test_peak_bytes_counts_what_is_alive_at_once(fn, expected):
    x = torch.rand(1000)
    measured = measure.peak_bytes(lambda: fn(x))
    assert expected <= measured <= expected + 16  # and a scalar or two


def test_peak_bytes_forgets_what_was_freed():
    def in_turns():
        for _ in range(5):
            torch.zeros(1000)

    assert measure.peak_bytes(in_turns) == 4000


def test_recording_leaves_out_the_first_call_and_logs_nothing():
    # A process of its own: the profiler reads its log level once, at its first use.
    program = """if True:
        import torch
        from qtorch_tutorial import measure
        calls = iter([torch.neg, torch.relu])
        record = measure.recorded(lambda: next(calls)(torch.ones(2, 2)))
        print({e.name for e in record.events()} & {"aten::neg", "aten::relu"})
    """
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert ran.stdout == "{'aten::relu'}\n"
    assert ran.stderr == ""


def test_errors_are_those_of_the_formulas(rng):
    x, y = torch.randn(50, generator=rng), torch.randn(50, generator=rng)
    signal = sum(v * v for v in x.tolist())
    noise = sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True))
    assert measure.sqnr_db(x, y) == pytest.approx(10 * math.log10(signal / noise))
    assert measure.relative_error(x, y) == pytest.approx(math.sqrt(noise / signal))
    largest = max(abs(a - b) for a, b in zip(x.tolist(), y.tolist(), strict=True))
    assert measure.max_abs_error(x, y) == pytest.approx(largest)


def test_no_error_is_an_infinite_sqnr():
    assert measure.sqnr_db(torch.ones(3), torch.ones(3)) == math.inf


@pytest.mark.parametrize(
    "fn", [measure.sqnr_db, measure.relative_error, measure.max_abs_error]
)
def test_shapes_that_would_broadcast_are_refused(fn):
    with pytest.raises(ValueError, match=r"shapes differ: \(3,\) and \(3, 1\)"):
        fn(torch.ones(3), torch.ones(3, 1))


def test_accuracy_is_the_share_of_right_rows():
    scores = torch.eye(4)
    assert measure.accuracy(nn.Identity(), scores, torch.tensor([0, 1, 2, 0])) == 0.75


# --- time ------------------------------------------------------------------------


def sleeper(seconds):
    return lambda: time.sleep(seconds)


def test_a_longer_call_is_slower_and_a_shorter_one_faster():
    table = measure.latency(
        {"first": sleeper(0.002), "long": sleeper(0.006), "short": sleeper(0.0005)},
        rounds=9,
    )
    assert table["long"].verdict == "slower"
    assert table["short"].verdict == "faster"
    assert table["first"].median_us > 2000
    assert 1.5 < table["long"].ratio < 4
    assert table["long"].low <= table["long"].ratio <= table["long"].high


def test_times_are_exactly_those_of_the_clock(monkeypatch):
    # A clock that only the callables move: 20 and 60 microseconds a call.
    now = [0]
    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: now[0])
    calls = {"short": 0, "long": 0}

    def take(name, microseconds):
        calls[name] += 1
        now[0] += 1000 * microseconds

    table = measure.latency(
        {"short": lambda: take("short", 20), "long": lambda: take("long", 60)},
        rounds=10,
        block_us=600,
    )
    short, long = table["short"], table["long"]
    assert (short.median_us, short.spread_us) == (20, 0)
    assert (long.median_us, long.spread_us) == (60, 0)
    assert (long.low, long.ratio, long.high) == (3, 3, 3)
    # 1 call to warm up and 3 to see how long it takes, then 10 blocks of 600.
    assert calls == {"short": 4 + 10 * 30, "long": 4 + 10 * 10}


def test_the_interval_is_that_of_the_order_statistics():
    times = [float((7 * n) % 27) for n in range(27)]
    summary = measure._summary(times, [1.0] * 27)
    assert (summary.low, summary.ratio, summary.high) == (7, 13, 19)


def test_no_gradient_is_recorded_while_it_is_timed():
    seen = []
    measure.latency({"a": lambda: seen.append(torch.is_grad_enabled())}, rounds=6)
    assert not any(seen)


def test_the_first_is_compared_with_itself():
    first = measure.latency({"only": lambda: None}, rounds=6)["only"]
    assert (first.ratio, first.low, first.high) == (1, 1, 1)
    assert first.verdict == "no difference"


def test_every_candidate_runs_in_every_round_and_in_changing_order():
    seen = []
    names = ("a", "b", "c")

    def call(name):
        def record():
            seen.append(name)
            time.sleep(0.0005)

        return record

    measure.latency({n: call(n) for n in names}, rounds=20, block_us=1)
    rounds = [tuple(seen[i : i + 3]) for i in range(12, 72, 3)]
    assert all(sorted(r) == list(names) for r in rounds)
    assert len(set(rounds)) > 2
    for one, other in itertools.combinations(names, 2):
        assert sum(r.index(one) < r.index(other) for r in rounds) == 10


def test_threads_and_garbage_collection_are_put_back():
    import gc

    before = torch.get_num_threads()
    during = []
    measure.latency(
        {"a": lambda: during.append((torch.get_num_threads(), gc.isenabled()))},
        rounds=6,
        threads=before + 1,
        block_us=1,
    )
    assert during[-1] == (before + 1, False)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


@pytest.mark.parametrize(("n", "outside"), [(6, 0), (8, 0), (9, 1), (12, 2), (27, 7)])
def test_the_interval_leaves_out_as_many_as_the_binomial_allows(n, outside):
    # Oracle: the published table of order-statistic intervals for a median.
    assert measure._outside(n) == outside
    covered = sum(math.comb(n, k) for k in range(outside + 1, n - outside)) / 2**n
    assert covered >= 0.95
    narrower = sum(math.comb(n, k) for k in range(outside + 2, n - outside - 1)) / 2**n
    assert narrower < 0.95


def test_the_interval_holds_the_true_ratio_as_often_as_it_says(rng):
    # Simulated times with a known ratio and long tails: no clock, no flakes.
    held = 0
    for _ in range(400):
        noise = torch.randn(2, 27, generator=rng).exp()
        first, second = noise[0].tolist(), (1.3 * noise[1]).tolist()
        summary = measure._summary(second, first)
        held += summary.low <= 1.3 <= summary.high
    assert 0.95 <= held / 400 < 1


def test_median_and_spread_are_those_of_the_statistics_module():
    times = [5.0, 1.0, 2.0, 9.0, 4.0, 3.0, 8.0]
    summary = measure._summary(times, [1.0] * 7)
    assert summary.median_us == statistics.median(times)
    quarters = statistics.quantiles(times, n=4)
    assert summary.spread_us == quarters[2] - quarters[0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.5, 0.9, "faster"), (1.1, 2.0, "slower"), (0.9, 1.0, "no difference")],
)
def test_a_verdict_needs_an_interval_without_one(low, high, verdict):
    assert Latency(1.0, 0.1, (low + high) / 2, low, high).verdict == verdict


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="at least one callable"):
        measure.latency({})


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="at least 6 rounds, got 5"):
        measure.latency({"a": lambda: None}, rounds=5)
