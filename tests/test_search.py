"""search: the whole grid, an independent Pareto front, nothing lost when stopped."""

import itertools
import subprocess
import sys
import warnings

import optuna
import pytest
import torch
import zoo
from torch import nn
from torch.ao.nn import quantized as nnq

from qtorch_tutorial import convert, measure, repro
from qtorch_tutorial.data import Split
from qtorch_tutorial.search import SPACE, Setting, search, sensitivity

SMALL = {"observer": ("minmax", "histogram"), "reduce_range": (False, True)}


@pytest.fixture
def split():
    rng = repro.generator(1)
    x = torch.randn(160, 12, generator=rng)
    y = torch.randint(5, (160,), generator=rng)
    return Split(x[:100], y[:100], x[100:], y[100:])


@pytest.fixture
def model():
    return zoo.make("sequential", bias=True)


@pytest.fixture
def address(tmp_path):
    return f"sqlite:///{tmp_path / 'search.db'}"


def run(model, split, **options):
    return search(model, split, **{"progress": False, **options})


class Counted:
    """A metric that counts its calls, and stops the search after some of them."""

    def __init__(self, stop_after=10**6, error=KeyboardInterrupt):
        self.calls, self.stop_after, self.error = 0, stop_after, error

    def __call__(self, model):
        if self.calls == self.stop_after:
            raise self.error
        self.calls += 1
        return float(measure.size_bytes(model) % 97)


# --- a setting -----------------------------------------------------------------------


def test_a_setting_makes_the_model_it_names(model, split):
    setting = Setting("minmax", "per tensor", True, keep_float=("2",))
    made = setting.apply(model, split.train_x)
    kinds = {name: type(m) for name, m in made.named_modules()}
    assert kinds["2"] is nn.Linear
    assert issubclass(kinds["0"], nnq.Linear)
    assert issubclass(kinds["4"], nnq.Linear)
    weights = (made.get_submodule(name).weight() for name in ("0", "4"))
    assert {w.qscheme() for w in weights} == {torch.per_tensor_affine}
    # The first Quantize module's grid: a reduced range is 127 steps wide.
    low, high = torch.aminmax(split.train_x)
    assert made.get_submodule("0_quant").scale.item() == pytest.approx(
        (high - low).item() / 127
    )


def test_each_observer_chooses_a_range_of_its_own(model, split):
    scales = set()
    for observer in SPACE["observer"]:
        made = Setting(observer).apply(model, split.train_x.split(25))
        scales.add(made.get_submodule("0_quant").scale.item())
    assert len(scales) == len(SPACE["observer"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"observer": "psychic"}, "unknown observer 'psychic'; known are minmax, mov"),
        ({"granularity": "per atom"}, "unknown granularity 'per atom'; known are per"),
        ({"keep_float": "0"}, r"keep_float needs a tuple of names: \('0',\)"),
    ],
)
def test_an_unknown_setting_is_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        Setting(**attributes)


# --- sensitivity ---------------------------------------------------------------------


def test_one_layer_at_a_time_is_quantized(model, split):
    table = sensitivity(model, split)
    assert sorted(table.index) == ["0", "2", "4"]
    assert table.error.is_monotonic_decreasing
    reference = model.eval()(split.test_x)
    for name in table.index:
        others = [n for n in ("0", "2", "4") if n != name]
        made = convert.to_fused(
            model,
            calibration=split.train_x.split(64),
            qconfig=Setting().qconfig(),
            keep_float=others,
        )
        error = (made(split.test_x) - reference).norm() / reference.norm()
        assert table.error[name] == pytest.approx(error.item(), rel=1e-5)
        assert table.size_bytes[name] == measure.size_bytes(made)


def test_a_layer_with_one_loud_row_is_the_most_sensitive_per_tensor(split):
    quiet = zoo.make("sequential", bias=False)
    with torch.no_grad():
        quiet[2].weight[0] *= 300
    table = sensitivity(quiet, split, setting=Setting(granularity="per tensor"))
    assert table.index[0] == "2"


# --- the grid ------------------------------------------------------------------------


def test_every_setting_is_tried_once(model, split):
    metric = Counted()
    subsets = [(), ("0",), ("2", "4")]
    table = run(model, split, space=SPACE | {"keep_float": subsets}, metric=metric)
    assert metric.calls == len(table) == 3 * 2 * 2 * 3
    columns = ["observer", "granularity", "reduce_range", "keep_float"]
    rows = set(table[columns].itertuples(index=False, name=None))
    assert rows == set(itertools.product(*SPACE.values(), subsets))


def test_without_a_choice_the_most_sensitive_layers_stay_float(model, split):
    ranked = list(sensitivity(model, split).index)
    table = run(model, split, space={})
    kept = {frozenset(names) for names in table.keep_float}
    assert kept == {frozenset(ranked[:k]) for k in range(3)}
    assert len(table) == 3


def test_the_order_of_names_and_values_given_twice_make_no_new_setting(model, split):
    space = {"keep_float": [("2", "0"), ("0", "2"), ("0", "2", "0")]}
    table = run(model, split, space=space)
    assert list(table.keep_float) == [("0", "2")]


def test_the_numbers_are_those_of_the_setting(model, split):
    table = run(model, split, space=SMALL | {"keep_float": [()]})
    reference = model.eval()(split.test_x)
    for row in table.itertuples():
        setting = Setting(row.observer, row.granularity, row.reduce_range)
        made = setting.apply(model, split.train_x.split(64))
        error = (made(split.test_x) - reference).norm() / reference.norm()
        assert row.error == pytest.approx(error.item(), rel=1e-5)
        assert row.size_bytes == measure.size_bytes(made)


def test_the_front_holds_what_no_other_beats(model, split):
    table = run(model, split)
    points = list(zip(table.size_bytes, table.error, strict=True))
    for point, on_front in zip(points, table.on_front, strict=True):
        beaten = any(
            a <= point[0] and b <= point[1] and (a, b) != point for a, b in points
        )
        assert on_front == (not beaten)
    assert 1 <= table.on_front.sum() < len(table)
    assert table.size_bytes.is_monotonic_increasing


def test_two_runs_give_the_same_table(model, split):
    first, second = (run(model, split) for _ in range(2))
    assert first.equals(second)


def test_calibration_is_cut_into_batches_of_the_first_rows(model, split):
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    watched = Watched(nn.Linear(12, 5))
    run(watched, split, space={"keep_float": [()]}, calibration_rows=70)
    calibration = seen[1:3]  # before it the float model, after it the metric
    assert [len(x) for x in calibration] == [64, 6]
    assert torch.equal(torch.cat(calibration), split.train_x[:70])


def test_nothing_outside_is_changed(model, split):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run(model.train(), split, space=SMALL)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_bar_can_be_left_out(model, split, capsys):
    run(model, split, space={"keep_float": [()]}, progress=True)
    assert "search: 100%" in capsys.readouterr().err
    run(model, split, space={"keep_float": [()]})
    assert capsys.readouterr() == ("", "")


# --- stopped and gone on -------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["storage", "memory"])
def test_what_has_finished_is_given_when_a_search_is_stopped(
    model, split, stored, address
):
    space = SMALL | {"keep_float": [(), ("0",)]}
    storage = address if stored else None
    options = {"space": space, "storage": storage}
    with pytest.warns(RuntimeWarning, match="3 settings have finished of 8"):
        table = run(model, split, metric=Counted(3), **options)
    assert len(table) == 3
    whole = run(model, split, space=space, metric=Counted())
    both = whole.merge(table, on=[*SMALL, "keep_float", "size_bytes", "error"])
    assert len(both) == 3


def test_a_search_goes_on_where_it_was_stopped(model, split, address):
    space = SMALL | {"keep_float": [(), ("0",)]}
    options = {"space": space, "storage": address}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run(model, split, metric=Counted(3), **options)
    rest, nothing = Counted(), Counted()
    table = run(model, split, metric=rest, **options)
    assert rest.calls == 8 - 3
    assert table.equals(run(model, split, space=space, metric=Counted()))
    assert table.equals(run(model, split, metric=nothing, **options))
    assert nothing.calls == 0


def test_an_error_in_the_metric_loses_nothing_either(model, split, address):
    options = {"space": SMALL | {"keep_float": [()]}, "storage": address}
    with pytest.raises(OSError, match="of the metric"):
        run(model, split, metric=Counted(2, OSError("disk of the metric")), **options)
    rest = Counted()
    run(model, split, metric=rest, **options)
    assert rest.calls == 2


def test_a_search_stopped_before_anything_has_finished_is_just_stopped(model, split):
    with pytest.raises(KeyboardInterrupt):
        run(model, split, space=SMALL | {"keep_float": [()]}, metric=Counted(0))


WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2])
import torch, zoo
from qtorch_tutorial import repro
from qtorch_tutorial.data import Split
from qtorch_tutorial.search import search
torch.set_num_threads(1)
x = torch.randn(160, 12, generator=repro.generator(1))
y = torch.zeros(160, dtype=torch.long)
table = search(zoo.make("sequential", bias=True), Split(x[:100], y[:100], x[100:], y),
               storage=sys.argv[1], progress=False)
print(len(table), table.on_front.sum())
"""


def test_two_processes_share_one_study(address):
    here = str(zoo.__file__).rsplit("zoo.py", 1)[0]
    command = [sys.executable, "-c", WORKER, address, here]
    workers = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    assert {out.split()[0] for out, _ in told} == {"36"}


def test_a_storage_that_another_process_is_creating_is_tried_again(
    model, split, address, monkeypatch
):
    get_storage, calls, ready_at = optuna.storages.get_storage, [], 3

    def busy(address):
        calls.append(address)
        if len(calls) < ready_at:
            raise OSError("table studies already exists")
        return get_storage(address)

    monkeypatch.setattr(optuna.storages, "get_storage", busy)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    table = run(model, split, space={"keep_float": [()]}, storage=address)
    assert len(table) == 1
    assert len(calls) >= 3
    ready_at = 100
    calls.clear()
    with pytest.raises(ValueError, match="cannot be used: table studies already ex"):
        run(model, split, space={"keep_float": [()]}, storage=address)


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"observer": ()}, "the space is empty: give 'observer' a sequence of values"),
        ({"observer": "minmax"}, "the space is empty: give 'observer' a sequence"),
        ({"keep_float": []}, "the space is empty: give 'keep_float'"),
        ({"colour": ["red"]}, "the space has no 'colour'; known are observer, gran"),
        ({"observer": ["psychic"]}, "unknown observer 'psychic'"),
        ({"keep_float": [("9",)]}, "no Linear layer '9'; it has '0', '2', '4'"),
        ({"keep_float": [("1",)]}, "no Linear layer '1'"),
        ({"keep_float": [("0", "2", "4")]}, "names every Linear layer: nothing to"),
    ],
)
def test_a_bad_space_is_refused_before_any_work(space, message, model, split):
    metric = Counted()
    space = {"keep_float": [()]} | space
    with pytest.raises(ValueError, match=message):
        run(model, split, space=space, metric=metric)
    assert metric.calls == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_without_a_finite_number_is_refused(value, model, split):
    with pytest.raises(ValueError, match=rf"the metric gave {value} for Setting\(obse"):
        run(model, split, metric=lambda _: value)


def test_calibration_needs_a_row(model, split):
    with pytest.raises(ValueError, match="calibration_rows must be at least 1, got 0"):
        run(model, split, calibration_rows=0)


@pytest.mark.parametrize("changed", ["model and data", "metric", "engine"])
def test_a_storage_of_another_search_is_refused(changed, model, split, address):
    options = {"space": {"keep_float": [()]}, "storage": address}
    run(model, split, metric=Counted(), **options)
    metric = Counted()
    if changed == "model and data":
        split = Split(split.train_x + 1, split.train_y, split.test_x, split.test_y)
    if changed == "metric":
        metric = None
    others = set(torch.backends.quantized.supported_engines) - {
        "none",
        torch.backends.quantized.engine,
    }
    engine = (
        sorted(others)[0] if changed == "engine" else torch.backends.quantized.engine
    )
    with (
        repro.engine(engine),
        pytest.raises(ValueError, match=f"holds a search with another {changed}"),
    ):
        run(model, split, metric=metric, **options)
