"""compare: each column against a count by hand, and forms whose answer is known."""

import dataclasses
import io
import itertools
import math
import random
import time
from typing import ClassVar

import pytest
import torch
import zoo
from torch import nn

from qtorch_tutorial import compare, repro
from qtorch_tutorial.convert import DYNAMIC, FLOAT, FORMS, FUSED, LAMPS, STATIC
from qtorch_tutorial.data import Split

COLUMNS = ["module", "size_bytes", "file_bytes", "accuracy", "agreement", "sqnr_db",
           "latency_us", "ratio", "low", "high"]  # fmt: skip


def run(model, split, **options):
    return compare.compare(model, split, **{"rounds": 6, "progress": False, **options})


@pytest.fixture
def split():
    """Rows of 12 features in 5 classes that the models of the zoo guess at."""
    rng = repro.generator(1)
    x = torch.rand(160, 12, generator=rng)
    y = torch.randint(5, (160,), generator=rng)
    return Split(x[:100], y[:100], x[100:], y[100:])


class Watched(nn.Module):
    """Behave like ``model`` and write down the rows of each call; sleep if told."""

    def __init__(self, model, seconds=0.0):
        super().__init__()
        self.model, self.seconds, self.rows = model, seconds, []

    def forward(self, x):
        self.rows.append(x)
        time.sleep(self.seconds)
        return self.model(x)


def watched_form(name="watched", *, seconds=0.0):
    """A form that keeps what it is given in lists: (models, calibrations, made)."""
    models, calibrations, made = [], [], []

    def make(model, calibration):
        models.append(model)
        calibrations.append(calibration)
        made.append(Watched(FLOAT.make(model, None), seconds))
        return made[-1]

    form = dataclasses.replace(FLOAT, name=name, make=make)
    return form, models, calibrations, made


# ---- compare: the table --------------------------------------------------------


def test_one_row_for_each_form_in_the_order_given(split):
    for forms in (FORMS, (FUSED, FLOAT), (STATIC,)):
        table = run(zoo.make("sequential"), split, forms=forms)
        assert list(table.index) == [form.name for form in forms]
        assert table.index.name == "form"
        assert list(table.columns) == COLUMNS
        assert list(table.module) == [form.module for form in forms]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_kind_of_model_gets_its_table(name, split):
    table = run(zoo.make(name), split)
    assert (table.size_bytes < table.size_bytes["float"])[1:].all()
    assert (table.sqnr_db > 20).all()
    assert (table.agreement > 0.8).all()


def test_bytes_are_those_counted_by_hand(split):
    table = run(zoo.make("sequential"), split)  # 12 to 16 to 16 to 5
    weights, biases = 12 * 16 + 16 * 16 + 16 * 5, 16 + 16 + 5
    grids = 3 * 8  # a float32 and an int32 for each output, and for each weight
    assert table.size_bytes["float"] == 4 * (weights + biases)
    assert table.size_bytes["dynamic"] == weights + 4 * biases + 2 * grids
    # A grid for each row of a weight instead, and one at the entrance.
    assert table.size_bytes["static"] == weights + 12 * biases + grids + 12
    assert table.size_bytes["fused"] == table.size_bytes["static"]


def test_file_bytes_are_those_of_the_converted_model(split):
    model = zoo.make("sequential")
    table = run(model, split, calibration_rows=50)
    for form in LAMPS:
        file = io.BytesIO()
        torch.save(form.make(model, split.train_x[:50]).state_dict(), file)
        assert table.file_bytes[form.name] == len(file.getvalue())


def test_quality_is_what_a_count_row_by_row_gives(split):
    model = zoo.make("two-heads")
    table = run(model, split, calibration_rows=50)
    truth = split.test_y.tolist()
    with torch.no_grad():
        before = FLOAT.make(model, None)(split.test_x).tolist()
        for form in LAMPS:
            after = form.make(model, split.train_x[:50])(split.test_x).tolist()
            guesses = [row.index(max(row)) for row in after]
            right = sum(g == t for g, t in zip(guesses, truth, strict=True))
            same = sum(
                g == row.index(max(row)) for g, row in zip(guesses, before, strict=True)
            )
            pairs = [
                pair
                for rows in zip(before, after, strict=True)
                for pair in zip(*rows, strict=True)
            ]
            signal = sum(a * a for a, _ in pairs)
            noise = sum((a - b) ** 2 for a, b in pairs)
            expected = 10 * math.log10(signal / noise) if noise else math.inf
            assert table.accuracy[form.name] == right / len(truth)
            assert table.agreement[form.name] == same / len(truth)
            assert table.sqnr_db[form.name] == pytest.approx(expected)
    assert (table.accuracy < table.agreement).all()  # or one column hid the other


def test_float_agrees_with_itself(split):
    row = run(zoo.make("bare"), split).loc["float"]
    assert (row.agreement, row.sqnr_db) == (1, math.inf)
    assert (row.ratio, row.low, row.high) == (1, 1, 1)


def test_a_form_of_ones_own_gets_a_row(split):
    own, *_ = watched_form("mine")
    table = run(zoo.make("bare"), split, forms=(FLOAT, own))
    assert table.sqnr_db["mine"] == math.inf


# ---- compare: what is calibrated, what is timed -----------------------------------


def test_calibration_is_the_first_rows_of_the_training_part(split):
    form, models, calibrations, _ = watched_form()
    model = zoo.make("bare")
    run(model, split, forms=(form,), calibration_rows=7)
    assert models == [model]
    assert torch.equal(calibrations[0], split.train_x[:7])


def test_a_timed_call_takes_the_first_rows_and_quality_takes_all(split):
    form, _, _, made = watched_form()
    run(zoo.make("bare"), split, forms=(form,), batch=3)
    rows = made[0].rows
    assert {len(x) for x in rows} == {3, 60}
    timed = [x for x in rows if len(x) == 3]
    assert len(timed) >= 6  # one for each round at the least
    assert all(torch.equal(x, split.test_x[:3]) for x in timed)
    assert all(torch.equal(x, split.test_x) for x in rows if len(x) == 60)


def test_a_form_that_waits_is_slower_than_the_first(split):
    slow, *_ = watched_form("slow", seconds=0.003)
    table = run(zoo.make("bare"), split, forms=(FLOAT, slow))
    row = table.loc["slow"]
    assert row.latency_us > 3000
    assert row.low <= row.ratio <= row.high
    assert row.low > 1
    other_way = run(zoo.make("bare"), split, forms=(slow, FLOAT))
    assert other_way.ratio["slow"] == 1
    assert other_way.high["float"] < 1


def test_nothing_outside_is_changed(split):
    model = zoo.make("two-heads").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data = [part.clone() for part in split]
    torch_state, state = torch.random.get_rng_state(), random.getstate()
    threads = torch.get_num_threads()
    run(model, split)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(split, data, strict=True))
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert random.getstate() == state
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_targets_that_are_no_classes_give_no_accuracy(split):
    targets = torch.zeros(60, 5)
    table = run(zoo.make("bare"), split._replace(test_y=targets))
    assert table.accuracy.isna().all()
    assert table.agreement["float"] == 1


def test_the_bar_names_each_form_and_can_be_left_out(split, capsys):
    run(zoo.make("bare"), split, progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "measure: fused" in shown
    run(zoo.make("bare"), split, progress=False)
    assert capsys.readouterr() == ("", "")


# ---- compare: what is refused -----------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"forms": ()}, ValueError, "give at least one form; known are float"),
        ({"forms": ("float",)}, TypeError, "'float' is not a Form"),
        ({"forms": (FLOAT, FLOAT)}, ValueError, "two forms have the name 'float'"),
        ({"batch": 0}, ValueError, r"batch must be in 1\.\.60.*got 0"),
        ({"batch": 61}, ValueError, r"batch must be in 1\.\.60.*got 61"),
        ({"rounds": 5}, ValueError, "at least 6 rounds, got 5"),
        ({"calibration_rows": 0}, ValueError, "calibration data are empty"),
    ],
)
def test_a_bad_option_is_refused(options, error, message, split):
    with pytest.raises(error, match=message):
        run(zoo.make("bare"), split, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_x": torch.rand(12)}, r"train_x needs shape \(rows, features\)"),
        ({"test_x": torch.rand(12)}, r"test_x needs shape \(rows, features\)"),
        ({"test_x": torch.rand(60, 9)}, r"does not take test_x of shape \(60, 9\)"),
        ({"train_x": torch.rand(60, 9)}, r"calibration data of shape \(60, 9\)"),
        ({"test_x": torch.full((60, 12), math.nan)}, "one finite tensor"),
        ({"test_y": torch.zeros(60, 1).long()}, r"test_y needs shape \(60,\).*60, 1"),
        ({"test_y": torch.zeros(59).long()}, r"test_y needs shape \(60,\).*59"),
    ],
)
def test_data_that_do_not_fit_are_refused(changed, message, split):
    with pytest.raises(ValueError, match=message):
        run(zoo.make("bare"), split._replace(**changed))


class Several(nn.Module):
    """A model whose output ``make`` forms from one linear layer's."""

    def __init__(self, make):
        super().__init__()
        self.layer, self.make = nn.Linear(12, 5), make

    def forward(self, x):
        return self.make(self.layer(x))


def test_no_call_records_a_gradient(split):
    recording = []
    model = Several(lambda y: recording.append(torch.is_grad_enabled()) or y)
    run(model, split)
    assert recording
    assert not any(recording)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.ReLU()), ValueError, "has no nn.Linear layer"),
        (lambda x: x, TypeError, "expected an nn.Module, got function"),
        (Several(lambda y: (y, y)), ValueError, r"one finite tensor of shape"),
        (Several(lambda y: y[:, 0]), ValueError, r"one finite tensor of shape"),
    ],
    ids=["no-linear", "no-module", "two-outputs", "one-dimension"],
)
def test_a_model_that_cannot_be_compared_is_refused(model, error, message, split):
    with pytest.raises(error, match=message):
        run(model, split)


@pytest.mark.parametrize("form", [DYNAMIC, STATIC, FUSED], ids=lambda f: f.name)
def test_a_model_that_is_quantized_already_is_refused(form, split, capsys):
    made = form.make(zoo.make("sequential"), split.train_x)
    with pytest.raises(ValueError, match="already quantized or prepared"):
        run(made, split, progress=True)
    assert capsys.readouterr().err == ""  # before any work is done


# ---- break_even -------------------------------------------------------------------


def test_a_row_for_each_width_batch_and_form():
    widths, batches, forms = (8, 16), (1, 3), (FUSED, DYNAMIC)
    grid = compare.break_even(
        widths=widths, batches=batches, forms=forms, rounds=6, progress=False
    )
    expected = itertools.product(widths, batches, (f.name for f in forms))
    got = zip(grid.width, grid.batch, grid.form, strict=True)
    assert list(got) == list(expected)
    assert (grid.latency_us > 0).all()
    assert ((grid.low <= grid.ratio) & (grid.ratio <= grid.high)).all()
    for row in grid.itertuples():
        faster, slower = row.high < 1, row.low > 1
        told = {"faster": faster, "slower": slower}.get(
            row.verdict, not faster and not slower
        )
        assert told, row


def test_the_layer_is_a_square_linear_with_relu_that_takes_batch_rows():
    form, models, calibrations, made = watched_form()
    compare.break_even(
        widths=(8, 20), batches=(2, 5), forms=(form,), rounds=6, progress=False
    )
    for width, (linear, relu), calibration, watched in zip(
        (8, 20), models, calibrations, made, strict=True
    ):
        assert (linear.in_features, linear.out_features) == (width, width)
        assert linear.weight.std() > 0
        assert isinstance(relu, nn.ReLU)
        assert calibration.shape == (5, width)
        assert {tuple(x.shape) for x in watched.rows} == {(2, width), (5, width)}


def test_a_form_is_compared_with_float():
    slow, *_ = watched_form("slow", seconds=0.003)
    grid = compare.break_even(
        widths=(8,), batches=(1,), forms=(slow,), rounds=6, progress=False
    )
    assert list(grid.verdict) == ["slower"]
    assert grid.ratio[0] > 3  # a layer of 8 takes microseconds


def test_the_global_generators_are_left_alone():
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        torch_state = torch.random.get_rng_state()
        compare.break_even(widths=(8,), batches=(1,), rounds=6, progress=False)
        assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": (64, 0)}, ValueError, r"every width must be at least 1.*64, 0"),
        ({"batches": (-1,)}, ValueError, r"every batch must be at least 1.*-1"),
        ({"widths": ()}, ValueError, "every width must be at least 1"),
        ({"forms": ()}, ValueError, "give at least one form"),
        ({"forms": ("static",)}, TypeError, "'static' is not a Form"),
        ({"forms": (STATIC, STATIC)}, ValueError, "two forms have the name 'static'"),
    ],
)
def test_a_bad_grid_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        compare.break_even(**{"widths": (8,), "batches": (1,), **options})


# ---- break_even: the time that is left -----------------------------------------------


class Recorded(compare.tqdm):
    """A bar that keeps the clock and the seconds it says are left, at each update."""

    told: ClassVar[list] = []

    def update(self, n=1):
        super().update(n)
        state = self.format_dict
        rate = state["rate"] or self.n / state["elapsed"]
        left = (self.total - self.n) / rate
        Recorded.told.append((time.perf_counter(), left, self.n / self.total))


def test_the_time_left_is_estimated_within_a_factor_of_ten(monkeypatch):
    options = {"rounds": 6, "progress": True, "forms": (DYNAMIC,)}
    compare.break_even(widths=(8,), batches=(1,), **options)  # what is set up once
    monkeypatch.setattr(compare, "tqdm", Recorded)
    monkeypatch.setattr(Recorded, "told", [])
    compare.break_even(widths=(32, 512), batches=(1, 256), **options)
    (start, left, share), *_, (end, _, last) = Recorded.told
    # Counted in products, the first cell is one in sixty thousand of the whole.
    assert 0.1 < left / (end - start) < 10, (left, end - start)
    assert 0.001 < share < last == pytest.approx(1)


def test_a_small_layer_is_thought_to_fill_a_block_and_a_large_one_to_exceed_it():
    block = compare.BLOCK_US / 1e6
    assert compare._turn_seconds(1, 1) == compare._turn_seconds(64, 16) == block
    large = compare._turn_seconds(4096, 256)
    assert large > 10 * block
    assert compare._turn_seconds(8192, 256) == pytest.approx(4 * large)
    assert large < compare._turn_seconds(4096, 512) < 2 * large


def test_the_bar_of_the_grid_ends_at_the_whole(capsys):
    options = {"widths": (8, 16), "batches": (1,), "rounds": 6}
    compare.break_even(**options)
    assert "100%" in capsys.readouterr().err
    compare.break_even(**options, progress=False)
    assert capsys.readouterr() == ("", "")
