"""The settings of a static model, tried one by one: bytes against error.

The grid is small enough to try all of it, so nothing here guesses what to try next.
Each finished setting is written to an Optuna study. With a storage that lasts, a search
that was stopped goes on where it stopped, and several processes or machines can share
one: each takes what is left in an order of its own.
"""

import hashlib
import itertools
import math
import random
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from tqdm import TqdmWarning, tqdm

from qtorch_tutorial import convert, measure
from qtorch_tutorial.data import Split

with warnings.catch_warnings():
    # In a notebook without ipywidgets Optuna's own progress bar warns; nothing uses it.
    warnings.simplefilter("ignore", TqdmWarning)
    import optuna

OBSERVERS: dict[str, type[tq.ObserverBase]] = {
    "minmax": tq.MinMaxObserver,
    "moving average": tq.MovingAverageMinMaxObserver,
    "histogram": tq.HistogramObserver,
}
"""Who chooses the range of an activation, by name."""

WEIGHTS = {
    "per tensor": tq.MinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    ),
    "per channel": tq.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric
    ),
}
"""How many scales a weight has, by name."""

SPACE: dict[str, Sequence] = {
    "observer": tuple(OBSERVERS),
    "granularity": tuple(WEIGHTS),
    "reduce_range": (False, True),
}
"""What :func:`search` tries; the layers that stay float come with the model."""

CALIBRATION_BATCH = 64
"""Rows that an observer sees at once."""

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Setting:
    """One way to make a static model: a value.

    Attributes
    ----------
    observer : str
        A name of :data:`OBSERVERS`.
    granularity : str
        A name of :data:`WEIGHTS`.
    reduce_range : bool
        Whether activations use 7 bits of 8.
    keep_float : tuple of str
        Names of the Linear layers that stay float.

    Raises
    ------
    ValueError
        If a name is not known.

    Examples
    --------
    >>> Setting(granularity="per tensor").qconfig().weight().qscheme
    torch.per_tensor_symmetric
    """

    observer: str = "histogram"
    granularity: str = "per channel"
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("observer", OBSERVERS), ("granularity", WEIGHTS)):
            given = getattr(self, name)
            if given not in known:
                raise ValueError(
                    f"unknown {name} {given!r}; known are {', '.join(known)}"
                )
        if isinstance(self.keep_float, str):
            raise ValueError(
                f"keep_float needs a tuple of names: ({self.keep_float!r},)"
            )

    def qconfig(self) -> tq.QConfig:
        """Return the same choice as torch writes it."""
        activation = OBSERVERS[self.observer].with_args(
            dtype=torch.quint8, reduce_range=self.reduce_range
        )
        return tq.QConfig(activation=activation, weight=WEIGHTS[self.granularity])

    def apply(
        self, model: nn.Module, calibration: Tensor | Iterable[Tensor]
    ) -> nn.Module:
        """Make the fused model of this setting; see :func:`.convert.to_fused`."""
        return convert.to_fused(
            model,
            calibration=calibration,
            qconfig=self.qconfig(),
            keep_float=self.keep_float,
        )


def sensitivity(
    model: nn.Module,
    split: Split,
    *,
    setting: Setting | None = None,
    metric: Metric | None = None,
    calibration_rows: int = 512,
) -> pd.DataFrame:
    """Quantize one Linear layer at a time and see what it costs.

    Parameters
    ----------
    model : nn.Module
        A trained float model on the CPU. It is not changed.
    split : Split
        Calibration takes the first rows of ``train_x``; the error is measured on
        ``test_x``.
    setting : Setting, optional
        How the one layer is quantized; its own ``keep_float`` is not used.
    metric : callable, optional
        ``metric(model) -> float``, lower is better. Default: relative error of the
        outputs on ``test_x`` against the float model's.
    calibration_rows : int

    Returns
    -------
    DataFrame
        Indexed by the layer's name, the most sensitive one first: ``size_bytes`` of the
        model with only this layer quantized, and its ``error``.

    Raises
    ------
    TypeError, ValueError
        If the model cannot be converted, or the metric gives no finite number.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> x, y = torch.rand(64, 4, generator=rng), torch.arange(64) % 2
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> sorted(sensitivity(network, Split(x, y, x, y)).index)
    ['0', '2']
    """
    base = setting or Setting()
    float_model = convert.FLOAT.make(model, None)
    names = convert.linear_layers(float_model)
    metric = metric or _relative_error(float_model, split.test_x)
    calibration = _batches(split, calibration_rows)
    rows = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        one = replace(base, keep_float=others)
        rows[name] = _measured(one, model, calibration, metric)
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["size_bytes", "error"]
    )
    return table.rename_axis("layer").sort_values("error", ascending=False)


def search(
    model: nn.Module,
    split: Split,
    *,
    space: Mapping[str, Sequence] = SPACE,
    metric: Metric | None = None,
    storage: str | None = None,
    calibration_rows: int = 512,
    progress: bool = True,
) -> pd.DataFrame:
    """Try every setting of ``space``; show bytes against error.

    Parameters
    ----------
    model, split, metric, calibration_rows
        As for :func:`sensitivity`.
    space : mapping of str to sequence
        Values to try for the attributes of :class:`Setting`; what is left out keeps its
        default. Without ``"keep_float"`` the ``k`` most sensitive layers stay float,
        for ``k`` from 0 to one less than the number of layers.
    storage : str, optional
        Address of an Optuna storage that lasts, such as ``"sqlite:///search.db"``. What
        it holds already is not measured again. Several processes may share it; with the
        address of a database server, several machines.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        One row for each setting that has finished: the four attributes of its
        :class:`Setting`, ``size_bytes``, ``error``, and ``on_front``: whether no other
        setting is better in one of the two and as good in the other. The smallest
        first. A KeyboardInterrupt ends the search early: a RuntimeWarning says so, and
        the table holds what has finished.

    Raises
    ------
    TypeError, ValueError
        If the space is empty or holds an unknown attribute, observer, granularity or
        layer; if the model cannot be converted; if the metric gives no finite number;
        or if the storage cannot be used, or holds the search of another model, other
        data, another metric or another engine.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> x, y = torch.rand(64, 4, generator=rng), torch.arange(64) % 2
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> len(search(network, Split(x, y, x, y), progress=False))
    24
    """
    float_model = convert.FLOAT.make(model, None)
    calibration = _batches(split, calibration_rows)
    about = _about(float_model, (*calibration, split.test_x), metric)
    metric = metric or _relative_error(float_model, split.test_x)
    space = dict(space)
    if "keep_float" not in space:
        ranked = sensitivity(
            model, split, metric=metric, calibration_rows=calibration_rows
        ).index
        space["keep_float"] = [tuple(ranked[:k]) for k in range(len(ranked))]
    settings = _settings(space, convert.linear_layers(float_model))
    study = _study(storage, about)
    # Processes that share a study start in different places, and seldom meet.
    random.Random().shuffle(settings)
    try:
        for setting in tqdm(settings, desc="search", disable=not progress):
            if setting not in _finished(study):
                values = _measured(setting, model, calibration, metric)
                study.add_trial(
                    optuna.create_trial(values=values, user_attrs=asdict(setting))
                )
    except KeyboardInterrupt:
        finished = _finished(study)
        if not finished:
            raise
        warnings.warn(
            f"the search was stopped: {len(finished)} settings have finished of "
            f"{len(settings)}",
            RuntimeWarning,
            stacklevel=2,
        )
    return _table(study)


def _settings(space: Mapping[str, Sequence], layers: list[str]) -> list[Setting]:
    """Every combination of the values once, checked before any work is done."""
    known = Setting.__dataclass_fields__
    for name, values in space.items():
        if name not in known:
            raise ValueError(f"the space has no {name!r}; known are {', '.join(known)}")
        if isinstance(values, str) or not len(values):
            raise ValueError(f"the space is empty: give {name!r} a sequence of values")
    settings = {}
    for values in itertools.product(*space.values()):
        setting = Setting(**dict(zip(space, values, strict=True)))
        convert.check_layers(setting.keep_float, layers)
        kept = tuple(name for name in layers if name in setting.keep_float)
        settings[replace(setting, keep_float=kept)] = None
    return list(settings)


def _batches(split: Split, rows: int) -> Sequence[Tensor]:
    """Cut the calibration rows into batches: a moving average needs several."""
    if rows < 1:
        raise ValueError(f"calibration_rows must be at least 1, got {rows}")
    return split.train_x[:rows].split(CALIBRATION_BATCH)


def _relative_error(float_model: nn.Module, x: Tensor) -> Metric:
    """Return a metric: relative error of a model's outputs against the float one's."""
    with torch.no_grad():
        reference = float_model(x)
    return lambda model: measure.relative_error(reference, model(x))


def _measured(
    setting: Setting, model: nn.Module, calibration: Sequence[Tensor], metric: Metric
) -> tuple[int, float]:
    """Bytes and error of the model that a setting makes."""
    made = setting.apply(model, calibration)
    with torch.no_grad():
        error = float(metric(made))
    if not math.isfinite(error):
        raise ValueError(f"the metric gave {error} for {setting}")
    return measure.size_bytes(made), error


def _about(
    model: nn.Module, data: Sequence[Tensor], metric: Metric | None
) -> dict[str, str]:
    """Name what a study is measured on: its numbers mean nothing for anything else."""
    digest = hashlib.sha256()
    for tensor in (*model.state_dict().values(), *data):
        digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "model and data": digest.hexdigest(),
        "metric": getattr(metric, "__qualname__", type(metric).__qualname__),
        "engine": torch.backends.quantized.engine,
    }


def open_storage(address: str) -> optuna.storages.BaseStorage:
    """Open an Optuna storage, or create it.

    Raises
    ------
    ValueError
        If the address is none, or nothing can be kept there.

    Examples
    --------
    >>> open_storage("nonsense")
    Traceback (most recent call last):
    ValueError: the storage nonsense cannot be used: Could not parse SQLAlchemy URL...
    """
    for attempts_left in reversed(range(6)):
        try:
            return optuna.storages.get_storage(address)
        except Exception as error:  # each kind of database raises errors of its own
            # Two processes that begin at once both create the tables, and one fails.
            if not attempts_left:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"the storage {address} cannot be used: {reason}"
                ) from error
        time.sleep(0.3)


def _study(storage: str | None, about: dict[str, str]) -> optuna.Study:
    """Open the study of this storage, or begin it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=None if storage is None else open_storage(storage),
        study_name="qtorch",
        directions=["minimize", "minimize"],
        load_if_exists=True,
    )
    for name, value in about.items():
        if study.user_attrs.get(name, value) != value:
            raise ValueError(
                f"the storage {storage} holds a search with another {name}: "
                "choose a new file"
            )
        study.set_user_attr(name, value)
    return study


def _finished(study: optuna.Study) -> dict[Setting, optuna.trial.FrozenTrial]:
    """Read back the settings that the study holds."""
    trials = {}
    for trial in study.get_trials(deepcopy=False):
        kept = tuple(trial.user_attrs["keep_float"])
        trials[Setting(**trial.user_attrs | {"keep_float": kept})] = trial
    return trials


def _table(study: optuna.Study) -> pd.DataFrame:
    """Every finished setting with what it measured, the smallest first."""
    front = {trial.number for trial in study.best_trials}
    rows = [
        asdict(setting)
        | dict(zip(("size_bytes", "error"), trial.values, strict=True))
        | {"on_front": trial.number in front}
        for setting, trial in _finished(study).items()
    ]
    table = pd.DataFrame(rows).astype({"size_bytes": int})
    # All columns: settings that are equal in both come in the same order everywhere.
    order = ["size_bytes", "error", "observer", "granularity", "reduce_range"]
    return table.sort_values([*order, "keep_float"], ignore_index=True)
