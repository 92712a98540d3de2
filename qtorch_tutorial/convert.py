"""A float model in, a *new* quantized model out: one function for each form.

Every function copies its argument and never changes it, works on any ``nn.Module`` with
``nn.Linear`` layers, and gives a model that takes and gives floats, in eval mode; only
:func:`to_qat` gives one in training mode.

Where does a static region begin and end? In an ``nn.Sequential``, a run of layers that
can stay in integers (Linear, ReLU, Dropout, Identity) is quantized as a whole, between
a ``QuantStub`` and a ``DeQuantStub``. A Linear anywhere else gets stubs of its own:
without running the model no one can know what comes after it. Fuse such a model by hand
first (``torch.ao.quantization.fuse_modules``); its fused layers are converted too.

There are two ways into integers: at once, with :func:`to_dynamic`, :func:`to_static` or
:func:`to_fused`; or by way of training, with :func:`to_qat`, then
:func:`qtorch_tutorial.train.fit`, then :func:`from_qat`.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.quantization as tq
from torch import Tensor, nn

from qtorch_tutorial import models, repro

_LINEAR = (nn.Linear, nni.LinearReLU, nni.LinearBn1d)
_STAYS_QUANTIZED = (*_LINEAR, nn.ReLU, nn.Dropout, nn.Identity)


def to_dynamic(
    model: nn.Module,
    *,
    qconfig: tq.QConfig | None = None,
    keep_float: Collection[str] = (),
) -> nn.Module:
    """Make each Linear a ``nn.quantized.dynamic.Linear``.

    Parameters
    ----------
    model : nn.Module
        Float, on the CPU, with at least one ``nn.Linear``.
    qconfig : QConfig, optional
        Default: ``default_dynamic_qconfig``, which quantizes weights *per tensor*;
        ``per_channel_dynamic_qconfig`` gives each row its own scale.
    keep_float : collection of str
        Names of Linear layers that stay as they are, as in ``model.named_modules()``.

    Returns
    -------
    nn.Module
        A new model in eval mode, float in and float out.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``.
    ValueError
        If it has no Linear layer to quantize, is already quantized, is not on the CPU,
        or holds a NaN or an infinity; if a name of ``keep_float`` is no Linear layer.

    Examples
    --------
    >>> to_dynamic(nn.Sequential(nn.Linear(4, 2)))[0].weight().dtype
    torch.qint8
    """
    holder = _copy_of(model)
    kept = _kept(holder, keep_float)
    # torch's convert visits a shared module once: keep each in a holder of its own.
    only = _shared(holder) - kept
    _replace(holder, lambda layer: nn.Sequential(layer), only=only)
    qconfig = qconfig or tq.default_dynamic_qconfig
    names = {
        name: qconfig
        for name, module in holder.named_modules()
        if type(module) in _LINEAR and module not in kept
    }
    with repro.quiet():
        tq.quantize_dynamic(holder, names, inplace=True)
    return holder[0].eval()  # torch makes its new modules in training mode


def to_static(
    model: nn.Module,
    *,
    calibration: Tensor | Iterable[Tensor],
    qconfig: tq.QConfig | None = None,
    keep_float: Collection[str] = (),
) -> nn.Module:
    """Make each Linear a ``nn.quantized.Linear`` whose grids come from calibration.

    Parameters
    ----------
    model : nn.Module
        As for :func:`to_dynamic`.
    calibration : float32 tensor, shape (rows, features), or an iterable of them
        What the model will see in use; a few hundred rows are usually enough.
    qconfig : QConfig, optional
        Default: torch's default for the engine in use.
    keep_float : collection of str
        As for :func:`to_dynamic`; a float layer ends a quantized run.

    Returns
    -------
    nn.Module
        A new model in eval mode, float in and float out. Its modules keep their names;
        a run ``0 ... 4`` of a Sequential stands between ``0_quant`` and ``4_dequant``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`to_dynamic`; also if the calibration is missing, empty, has fewer
        than 2 dimensions or the wrong number of features, or holds a NaN or an
        infinity, or if the engine is not supported.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> float_model = nn.Sequential(nn.Linear(4, 2))
    >>> model = to_static(float_model, calibration=torch.rand(64, 4, generator=rng))
    >>> [type(m).__name__ for m in model]
    ['Quantize', 'Linear', 'DeQuantize']
    """
    holder = _copy_of(model)
    return _static(holder, calibration, qconfig, _kept(holder, keep_float))


def to_fused(
    model: nn.Module,
    *,
    calibration: Tensor | Iterable[Tensor],
    qconfig: tq.QConfig | None = None,
    keep_float: Collection[str] = (),
) -> nn.Module:
    """As :func:`to_static`, after each Linear has absorbed its BatchNorm1d and ReLU.

    Linear followed by ReLU in a Sequential becomes
    ``nn.intrinsic.quantized.LinearReLU``; a BatchNorm1d between them is folded into the
    weight first. What was absorbed leaves an ``nn.Identity``, so that every other
    module keeps its name.

    Parameters, result and errors as for :func:`to_static`.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> float_model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    >>> model = to_fused(float_model, calibration=torch.rand(64, 4, generator=rng))
    >>> [type(m).__name__ for m in model]
    ['Quantize', 'LinearReLU', 'Identity', 'DeQuantize']
    """
    holder = _copy_of(model)
    kept = _kept(holder, keep_float)
    _fuse(holder, kept)
    return _static(holder, calibration, qconfig, kept)


def low_bit_qconfig(bits: int) -> tq.QConfig:
    """Fake quantization of weights and activations to ``bits`` bits each.

    Weights: symmetric, a scale for each row, which follows the weight at once.
    Activations: affine, one scale, which follows a moving average of the range. At 8
    bits they get the reduced range if torch's default for the engine does.

    Serves :func:`to_qat`, and :func:`to_static` and :func:`to_fused` for the same grids
    without training. The integers are held in 8 bits, whatever ``bits`` says: this
    shows what a width costs in accuracy, and saves no memory below 8. torch's kernels
    clamp activations at 255; below 8 bits a converted model clamps them again, where
    its grid ends. The clamp is no part of a state dict: convert first, then load.

    Parameters
    ----------
    bits : int, 2 to 8

    Raises
    ------
    ValueError
        If ``bits`` is outside 2..8.

    Examples
    --------
    >>> weight = low_bit_qconfig(4).weight()
    >>> weight.quant_min, weight.quant_max
    (-8, 7)
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2..8, got {bits}")
    with repro.quiet():
        default = tq.get_default_qat_qconfig(torch.backends.quantized.engine)
        reduced = default.activation().activation_post_process.reduce_range
    activation = tq.FakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=2**bits - 1,
        dtype=torch.quint8,
        reduce_range=bits == 8 and reduced,
    )
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    return tq.QConfig(activation=activation, weight=weight)


def to_qat(
    model: nn.Module,
    *,
    qconfig: tq.QConfig | None = None,
    fuse: bool = False,
    keep_float: Collection[str] = (),
) -> nn.Module:
    """Make each Linear a ``nn.qat.Linear``: a float weight, seen fake-quantized.

    Parameters
    ----------
    model : nn.Module
        As for :func:`to_dynamic`, with a parameter to train. Its mode does not matter.
    qconfig : QConfig, optional
        Of fake quantization, as :func:`low_bit_qconfig` gives. Default: torch's default
        for the engine in use.
    fuse : bool
        First join each Linear with the ReLU or the BatchNorm1d after it, into
        ``nn.intrinsic.qat.LinearReLU`` and ``LinearBn1d``; torch has none for all
        three.
    keep_float : collection of str
        As for :func:`to_dynamic`; they are trained too.

    Returns
    -------
    nn.Module
        A new model in training mode, float in and float out, with the names and stubs
        of :func:`to_static`. Its observers follow every batch they see.

    Raises
    ------
    TypeError, ValueError
        As for :func:`to_dynamic`; also if no parameter can be trained, if ``qconfig``
        only observes, or if the engine is not supported.

    Examples
    --------
    >>> model = to_qat(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), fuse=True)
    >>> [type(m).__name__ for m in model]
    ['QuantStub', 'LinearReLU', 'Identity', 'DeQuantStub']
    """
    holder = _copy_of(model, to_train=True)
    if not any(p.requires_grad for p in holder.parameters()):
        raise ValueError(
            "the model has no parameter that can be trained: call requires_grad_(True)"
        )
    engine = torch.backends.quantized.engine
    repro.check_engine(engine)
    with repro.quiet():
        qconfig = qconfig or tq.get_default_qat_qconfig(engine)
        if not isinstance(qconfig, tq.QConfig):
            raise TypeError(f"expected a QConfig, got {type(qconfig).__name__}")
        if not isinstance(qconfig.weight(), tq.FakeQuantizeBase):
            raise ValueError(
                "qconfig only observes and nothing would be fake-quantized: take "
                "low_bit_qconfig or torch's get_default_qat_qconfig"
            )
    kept = _kept(holder, keep_float)
    holder.train()
    if fuse:
        _fuse(holder, kept, tq.fuse_modules_qat)
    _prepare(holder, qconfig, kept, tq.prepare_qat)
    return holder[0]


def from_qat(model: nn.Module) -> nn.Module:
    """Convert a fake-quantized model, once trained, to integers.

    Parameters
    ----------
    model : nn.Module
        Made by :func:`to_qat` and trained; or prepared by torch's ``prepare_qat``.

    Returns
    -------
    nn.Module
        A new model in eval mode on the CPU: ``nn.quantized.Linear`` and
        ``nn.intrinsic.quantized.LinearReLU``. With the observers off, it and ``model``
        in eval mode differ only where a float sum and an integer sum round to
        neighboring steps; with a reduced range, where training clamps a value at 127
        that the kernel lets pass up to 255; on ``qnnpack``, by its rounded bias; and,
        where a batch norm is folded, by a step of a weight that lies on a tie.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``.
    ValueError
        If nothing in it is fake-quantized, or an observer has never seen data.

    Examples
    --------
    >>> prepared = to_qat(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), fuse=True)
    >>> scores = prepared(torch.rand(64, 4, generator=torch.Generator().manual_seed(0)))
    >>> [type(m).__name__ for m in from_qat(prepared)]
    ['Quantize', 'LinearReLU', 'Identity', 'DeQuantize']
    """
    _check_module(model)
    if not any(isinstance(m, tq.FakeQuantizeBase) for m in model.modules()):
        raise ValueError("nothing in the model is fake-quantized: call to_qat first")
    if unseen := models.uncalibrated(model):
        raise ValueError(f"{unseen[0]!r} has never seen data: train or calibrate first")
    return _convert(nn.ModuleList([copy.deepcopy(model)]).cpu().eval())


@dataclass(frozen=True)
class Form:
    """One way to hold a model: a value, so that a new form is one more value.

    Attributes
    ----------
    name : str
        Short, for code and tables: "float", "dynamic", "static", "fused", "qat",
        "qat-fused".
    title : str
        The lamp of the tale.
    module : str
        The linear module it is made of.
    make : callable
        ``make(model, calibration)`` gives a new model of this form.
    needs_calibration : bool
        Whether ``make`` looks at its calibration data.
    trainable : bool
        Whether the result has parameters to train.
    color : str
        Its color in every figure: warm for float, cool for integers.
    """

    name: str
    title: str
    module: str
    make: Callable[[nn.Module, Tensor | Iterable[Tensor] | None], nn.Module]
    needs_calibration: bool
    trainable: bool
    color: str


FLOAT = Form(
    name="float",
    title="the open flame",
    module="nn.Linear",
    make=lambda model, _: _copy_of(model)[0],
    needs_calibration=False,
    trainable=True,
    color="#d1495b",
)
DYNAMIC = Form(
    name="dynamic",
    title="the lamp that trims itself",
    module="nn.quantized.dynamic.Linear",
    make=lambda model, _: to_dynamic(model),
    needs_calibration=False,
    trainable=False,
    color="#30638e",
)
STATIC = Form(
    name="static",
    title="the sealed lamp",
    module="nn.quantized.Linear",
    make=lambda model, calibration: to_static(model, calibration=calibration),
    needs_calibration=True,
    trainable=False,
    color="#00798c",
)
FUSED = Form(
    name="fused",
    title="the shaded lamp",
    module="nn.intrinsic.quantized.LinearReLU",
    make=lambda model, calibration: to_fused(model, calibration=calibration),
    needs_calibration=True,
    trainable=False,
    color="#5b5ea6",
)
QAT = Form(
    name="qat",
    title="the glass for the smith",
    module="nn.qat.Linear",
    make=lambda model, calibration: _seen(to_qat(model), calibration),
    needs_calibration=True,
    trainable=True,
    color="#c77b00",
)
QAT_FUSED = Form(
    name="qat-fused",
    title="the shaded glass for the smith",
    module="nn.intrinsic.qat.LinearReLU",
    make=lambda model, calibration: _seen(to_qat(model, fuse=True), calibration),
    needs_calibration=True,
    trainable=True,
    color="#8a5a00",
)
LAMPS = (FLOAT, DYNAMIC, STATIC, FUSED)
"""The four that a finished model is held in."""
FORMS = (*LAMPS, QAT, QAT_FUSED)
"""All of them; the last two are for training, and as large as float."""


def _copy_of(model: nn.Module, *, to_train: bool = False) -> nn.ModuleList:
    """Check a float model and return a copy in eval mode, the one item of a holder.

    torch's convert replaces children only; in a holder the model itself is a child.
    """
    _check_module(model)
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__name__}"
        quantized = kind.startswith("torch.") and ".quantized" in kind
        if quantized or hasattr(module, "activation_post_process"):
            where = repr(name) if name else "it"
            raise ValueError(
                f"the model is already quantized or prepared: {where} is "
                f"{kind}; start from the float model"
            )
        if isinstance(module, nni.LinearBn1d) and not to_train:
            raise ValueError(
                f"{name!r} was fused for training; start from the model before "
                "fuse_modules_qat"
            )
    if not any(type(m) is nn.Linear for m in model.modules()):
        raise ValueError(
            f"the model ({type(model).__name__}) has no nn.Linear layer: "
            "there is nothing to quantize"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{name!r} is on device {tensor.device}; quantized kernels run on the "
                "CPU only: call model.cpu() first"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name!r} is {tensor.dtype}: call model.float() first")
        if not torch.isfinite(tensor.detach()).all():
            raise ValueError(f"{name!r} holds a NaN or an infinity: train anew")
    return nn.ModuleList([copy.deepcopy(model)]).eval()


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}")


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the Linear layers of a float model, in the order of its modules.

    Examples
    --------
    >>> linear_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['0', '2']
    """
    return [name for name, m in model.named_modules() if type(m) in _LINEAR]


def check_layers(keep_float: Collection[str], layers: Collection[str]) -> None:
    """Raise a ValueError unless each name is a layer, and a layer is left over."""
    for name in keep_float:
        if name not in layers:
            raise ValueError(
                f"keep_float: the model has no Linear layer {name!r}; "
                f"it has {', '.join(map(repr, layers))}"
            )
    if set(keep_float) == set(layers):
        raise ValueError("keep_float names every Linear layer: nothing to quantize")


def _kept(holder: nn.ModuleList, names: Collection[str]) -> set[nn.Module]:
    """Look up the layers that stay float."""
    check_layers(names, linear_layers(holder[0]))
    return {holder[0].get_submodule(name) for name in names}


def _shared(holder: nn.Module) -> set[nn.Module]:
    """Modules that stand in more than one place."""
    places = Counter(m for _, m in holder.named_modules(remove_duplicate=False))
    return {module for module, count in places.items() if count > 1}


def _sequences(holder: nn.Module) -> list[nn.Sequential]:
    """Every exact Sequential: a subclass may run its children in another order."""
    return [m for m in holder.modules() if type(m) is nn.Sequential]


def _replace(
    module: nn.Module,
    wrap: Callable[[nn.Module], nn.Module],
    *,
    only: set[nn.Module],
    done: dict[nn.Module, nn.Module] | None = None,
) -> None:
    """Put ``wrap(layer)`` wherever a linear layer of ``only`` stands, once for each."""
    done = {} if done is None else done
    for name, child in list(module._modules.items()):
        if type(child) in _LINEAR:
            if child in only:
                module._modules[name] = done.setdefault(child, wrap(child))
        elif child is not None and child not in done.values():
            _replace(child, wrap, only=only, done=done)


def _fuse(
    holder: nn.ModuleList,
    kept: set[nn.Module],
    fuse_modules: Callable[..., nn.Module] = tq.fuse_modules,
) -> None:
    """Let each Linear of a Sequential absorb its BatchNorm1d, then its ReLU."""
    left_alone = _shared(holder) | kept
    for sequence in _sequences(holder):
        for kinds in ((nn.Linear, nn.BatchNorm1d), (nn.Linear, nn.ReLU)):
            children = [
                (n, m)
                for n, m in sequence.named_children()
                if type(m) is not nn.Identity
            ]
            for (name, module), (after, follower) in itertools.pairwise(children):
                pair = (type(module), type(follower))
                foldable = pair[1] is not nn.BatchNorm1d or (
                    follower.affine and follower.track_running_stats
                )
                alone = not {module, follower} & left_alone
                if pair == kinds and foldable and alone:
                    with repro.quiet():
                        fuse_modules(sequence, [name, after], inplace=True)


def _static(
    holder: nn.ModuleList,
    calibration: Tensor | Iterable[Tensor],
    qconfig: tq.QConfig | None,
    kept: set[nn.Module],
) -> nn.Module:
    """Put stubs around what can be quantized, observe the calibration, convert."""
    engine = torch.backends.quantized.engine
    repro.check_engine(engine)
    batches = _checked(calibration)
    with repro.quiet():
        qconfig = qconfig or tq.get_default_qconfig(engine)
        _prepare(holder, qconfig, kept, tq.prepare)
        _observe(holder[0], batches)
    return _convert(holder)


def _convert(holder: nn.ModuleList) -> nn.Module:
    """Let torch convert what it prepared; keep the ends of grids narrower than that."""
    observers = {
        name: module.activation_post_process
        for name, module in holder.named_modules()
        if hasattr(module, "activation_post_process")
        and not isinstance(module, tq.FakeQuantizeBase)  # it holds an observer too
    }
    with repro.quiet():
        tq.convert(holder, inplace=True)
    for name, observer in observers.items():
        if _ends_early(observer):
            clamp = _Clamp(observer.quant_min, observer.quant_max)
            holder.get_submodule(name).register_forward_hook(clamp)
    return holder[0].eval()  # torch makes its new modules in training mode


def _ends_early(observer: nn.Module) -> bool:
    """Whether a grid of activations ends below 255, and not by a reduced range."""
    inner = getattr(observer, "activation_post_process", observer)
    early = getattr(observer, "quant_max", 255) < 255
    return early and not getattr(inner, "reduce_range", False)


@dataclass(frozen=True)
class _Clamp:
    """Forward hook: clamp a quantized output to the integers ``first`` to ``last``."""

    first: int
    last: int

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        scale, zero_point = output.q_scale(), output.q_zero_point()
        ends = [(end - zero_point) * scale for end in (self.first, self.last)]
        return output.clamp(*ends)


def _prepare(
    holder: nn.ModuleList,
    qconfig: tq.QConfig,
    kept: set[nn.Module],
    prepare: Callable[..., nn.Module],
) -> None:
    """Put stubs around what can be quantized, and let torch prepare it."""
    left_alone = _shared(holder) | kept
    in_runs: set[nn.Module] = set()
    for sequence in _sequences(holder):
        for run in _runs(sequence, left_alone):
            _put_stubs_around(sequence, run)
            in_runs.update(module for _, module in run)
    alone = {m for m in holder.modules() if type(m) in _LINEAR} - in_runs - kept
    _replace(holder, _with_stubs, only=alone)
    for module in holder.modules():
        wanted = isinstance(module, (*_STAYS_QUANTIZED, tq.QuantStub, tq.DeQuantStub))
        if wanted and module not in kept:
            module.qconfig = qconfig
    with repro.quiet():
        prepare(holder, inplace=True)


def _seen(model: nn.Module, calibration: Tensor | Iterable[Tensor]) -> nn.Module:
    """Let the observers of a fake-quantized model see the calibration, then rest."""
    _observe(model.eval(), _checked(calibration))
    return model.apply(tq.disable_observer)


def _runs(
    sequence: nn.Sequential, left_alone: set[nn.Module]
) -> Iterator[list[tuple[str, nn.Module]]]:
    """Stretches of children that stay in integers, from a Linear to the last ReLU."""
    run: list[tuple[str, nn.Module]] = []
    for name, module in (*sequence.named_children(), ("", None)):
        fits = type(module) in _STAYS_QUANTIZED and module not in left_alone
        if fits and (run or type(module) in _LINEAR):
            run.append((name, module))
        elif run:
            yield run
            run = []


def _put_stubs_around(
    sequence: nn.Sequential, run: list[tuple[str, nn.Module]]
) -> None:
    """Insert a QuantStub before a run of children and a DeQuantStub after it."""
    first, last = run[0][0], run[-1][0]
    children = list(sequence._modules.items())
    sequence._modules.clear()
    for name, module in children:
        if name == first:
            sequence.add_module(f"{first}_quant", tq.QuantStub())
        sequence.add_module(name, module)
        if name == last:
            sequence.add_module(f"{last}_dequant", tq.DeQuantStub())


def _with_stubs(layer: nn.Module) -> nn.Sequential:
    """Put stubs of its own around a linear layer."""
    return nn.Sequential(tq.QuantStub(), layer, tq.DeQuantStub())


def _checked(calibration: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Batches of calibration data, or an error that says what is wrong with them."""
    if calibration is None:
        raise ValueError(
            "calibration data are missing: give a few hundred typical rows"
        )
    batches = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    if not batches or any(isinstance(b, Tensor) and b.numel() == 0 for b in batches):
        raise ValueError("calibration data are empty: give a few hundred typical rows")
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise TypeError(f"calibration needs tensors, got {type(batch).__name__}")
        if batch.ndim < 2:
            raise ValueError(
                f"calibration needs shape (rows, features), got {tuple(batch.shape)}"
            )
        if batch.device.type != "cpu":
            raise ValueError(
                f"calibration data are on {batch.device}: call .cpu() first"
            )
        if not torch.isfinite(batch).all():
            raise ValueError("calibration data hold a NaN or an infinity")
    return batches


def _observe(model: nn.Module, batches: list[Tensor]) -> None:
    """Run the calibration data through the prepared model."""
    with torch.no_grad():
        for batch in batches:
            try:
                model(batch)
            except RuntimeError as error:
                raise ValueError(
                    f"calibration data of shape {tuple(batch.shape)} do not fit the "
                    f"model: {error}"
                ) from error
