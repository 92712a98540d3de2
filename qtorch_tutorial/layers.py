"""The quantized linear modules from scratch, in integers, readable before fast.

One layer computes, for input integers ``xq`` and weight integers ``wq``::

    acc[i, j] = sum_k (xq[i, k] - z_x) * (wq[j, k] - z_w[j])          int32, exact

and the three modules differ in what they make of the accumulator:

* :class:`IntegerLinear` adds the bias, rescales to the output's grid, rounds and
  clamps;
* :class:`IntegerLinearReLU` does the same, but clamps from the zero point on, so that
  ReLU costs nothing;
* :class:`DynamicIntegerLinear` measures the input's range at each call and gives
  floats.

Two more layers are for training next to integers that stay as they are:
:class:`WeightOnlyInt8Linear` and :class:`LoRALinear`.

The outputs of the first three equal the kernels' bit for bit, engine by engine. The
engines differ in one thing, the bias: FBGEMM (``fbgemm``, ``x86``) keeps it in float,
QNNPACK rounds it to an integer on the accumulator's scale. The saturation of ``onednn``
on processors without VNNI is not here.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 2.2; for FBGEMM's requantization
Khudia et al. 2021, arXiv:2101.05615.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qtorch_tutorial.affine import QParams, QTensor, choose_qparams, quantize

ENGINES = ("fbgemm", "x86", "qnnpack")
"""The engines whose arithmetic this module reproduces."""


def requantize_float_bias(
    acc: Tensor, bias: Tensor | None, step: Tensor, output_scale: Tensor
) -> Tensor:
    """Rescale accumulators as FBGEMM does: the bias stays float.

    Parameters
    ----------
    acc : int32 tensor, shape (batch, out_features)
    bias : float32 tensor, shape (out_features,), or None
    step : float32 tensor, shape () or (out_features,)
        The float worth of one unit of the accumulator, ``s_x * s_w``.
    output_scale : float32 tensor, shape ()

    Returns
    -------
    float32 tensor, same shape as ``acc``
        Integers, before the zero point and the clamp.
    """
    total = acc.float()
    if bias is not None and step.ndim:
        total = total + bias / step
    elif bias is not None:
        # For one common step FBGEMM multiplies by the reciprocal and adds, and rounds
        # once for both; float64 holds what is between. It moves an output in millions.
        total = (acc.double() + bias.double() * (1.0 / step).double()).float()
    return torch.round(total * (step / output_scale))


def requantize_integer_bias(
    acc: Tensor, bias: Tensor | None, step: Tensor, output_scale: Tensor
) -> Tensor:
    """Rescale accumulators as QNNPACK does: the bias is an int32 of the same step.

    Parameters and result as for :func:`requantize_float_bias`. A bias beyond the
    range of int32 saturates.
    """
    if bias is not None:
        ends = torch.iinfo(torch.int32)
        # In float64, which holds both ends of the range exactly.
        steps = torch.round(bias * (1.0 / step)).double().clamp(ends.min, ends.max)
        acc = acc + steps.to(torch.int32)
    return torch.round(acc.float() * (step * (1.0 / output_scale)))


@dataclass(frozen=True)
class _Accumulating:
    """What all three layers hold: an int8 weight, a float bias, an engine.

    Attributes
    ----------
    weight : QTensor
        int8, shape (out_features, in_features), per tensor or per channel (axis 0).
    bias : float32 tensor, shape (out_features,), or None
    engine : str
        Whose arithmetic to reproduce, one of ENGINES.
    """

    weight: QTensor
    bias: Tensor | None
    engine: str

    def accumulate(self, x: QTensor) -> Tensor:
        """Multiply and add the integers.

        Parameters
        ----------
        x : QTensor, uint8, shape (batch, in_features)

        Returns
        -------
        int32 tensor, shape (batch, out_features)

        Raises
        ------
        ValueError
            If ``x`` has another number of dimensions or features.
        """
        features = self.weight.shape[1]
        if len(x.shape) != 2 or x.shape[1] != features:
            raise ValueError(
                f"expected an input of shape (batch, {features}), got {tuple(x.shape)}"
            )
        # float64 holds every partial sum exactly (all are below 2**53), and is fast.
        return (x.centered().double() @ self.weight.centered().double().T).int()


@dataclass(frozen=True)
class IntegerLinear(_Accumulating):
    """``nn.quantized.Linear`` in integers: uint8 in, uint8 out.

    Attributes
    ----------
    output : QParams
        The grid of the output, fixed by calibration.

    Examples
    --------
    One weight of 0.5 and a bias of 1.0; the input 2.0 is 20 steps of 0.1:

    >>> from qtorch_tutorial.affine import QParams, QTensor
    >>> def grid(s, z, low, high):
    ...     zero_point = torch.tensor(z, dtype=torch.int32)
    ...     return QParams(torch.tensor(s), zero_point, low, high)
    >>> w = QTensor(torch.tensor([[50]], dtype=torch.int8), grid(0.01, 0, -128, 127))
    >>> x = QTensor(torch.tensor([[20]], dtype=torch.uint8), grid(0.1, 0, 0, 255))
    >>> layer = IntegerLinear(w, torch.tensor([1.0]), "x86", grid(0.02, 10, 0, 255))
    >>> layer.accumulate(x).item(), layer(x).q.item(), layer(x).dequantize().item()
    (1000, 110, 2.0)
    """

    output: QParams
    relu: ClassVar[bool] = False

    @classmethod
    def from_torch(
        cls, module: nn.Module, *, engine: str | None = None
    ) -> "IntegerLinear":
        """Take weight, bias and output grid out of a converted torch module.

        Parameters
        ----------
        module : torch.ao.nn.quantized.Linear, or its subclass LinearReLU
        engine : str, optional
            The engine that packed the weight; torch does not tell afterwards. Default:
            the one in use.

        Raises
        ------
        TypeError
            If ``module`` is not the module that this class reproduces.
        ValueError
            If the arithmetic of the engine is not known here.
        """
        wanted = "LinearReLU" if cls.relu else "Linear"
        _check_module(module, "torch.ao.nn", wanted, dynamic=False)
        output = QParams(
            torch.tensor(module.scale, dtype=torch.float32),
            torch.tensor(module.zero_point, dtype=torch.int32),
            0,
            255,
        )
        return cls(*_unpack(module), _known_engine(engine), output)

    def __call__(self, x: QTensor) -> QTensor:
        """Map uint8 (batch, in_features) to uint8 (batch, out_features)."""
        acc = self.accumulate(x)
        step = x.qparams.scale * self.weight.qparams.scale
        requantize = (
            requantize_integer_bias
            if self.engine == "qnnpack"
            else requantize_float_bias
        )
        q = requantize(acc, self.bias, step, self.output.scale) + self.output.zero_point
        low = int(self.output.zero_point) if self.relu else self.output.qmin
        return QTensor(q.clamp(low, self.output.qmax).to(torch.uint8), self.output)


@dataclass(frozen=True)
class IntegerLinearReLU(IntegerLinear):
    """``nn.intrinsic.quantized.LinearReLU`` in integers.

    The clamp starts at the output's zero point, the integer that stands for 0.0: what
    ReLU would remove is never stored.
    """

    relu: ClassVar[bool] = True


@dataclass(frozen=True)
class DynamicIntegerLinear(_Accumulating):
    """``nn.quantized.dynamic.Linear`` in integers: float in, float out.

    At each call the range of the whole input gives its grid, with one bit less on
    engines that honor the reduced range (``qnnpack`` does not).

    The result agrees with the kernel's to the last digits of float32. FBGEMM of torch
    2.11 adds the zero point before it rounds; there a tie can move an input by a step.
    """

    @classmethod
    def from_torch(
        cls, module: nn.Module, *, engine: str | None = None
    ) -> "DynamicIntegerLinear":
        """Take weight and bias out of a ``torch.ao.nn.quantized.dynamic.Linear``.

        Parameters and errors as for :meth:`IntegerLinear.from_torch`.
        """
        _check_module(module, "torch.ao.nn.quantized.dynamic", "Linear", dynamic=True)
        return cls(*_unpack(module), _known_engine(engine))

    def quantize_input(self, x: Tensor) -> QTensor:
        """Put the input on the grid that the kernel chooses for it."""
        return quantize(
            x, choose_dynamic_qparams(x, reduce_range=self.engine != "qnnpack")
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map float32 (batch, in_features) to float32 (batch, out_features)."""
        x_q = self.quantize_input(x)
        y = self.accumulate(x_q).float() * (
            x_q.qparams.scale * self.weight.qparams.scale
        )
        return y if self.bias is None else y + self.bias


def choose_dynamic_qparams(x: Tensor, *, reduce_range: bool) -> QParams:
    """Fit a grid to ``x`` as the dynamic kernels do, in double precision.

    The formula is the observers'; it is computed in double precision, takes the zero
    point from that end of the range whose terms are smaller, and does not let the scale
    fall below 6.1e-5.

    Parameters
    ----------
    x : float32 tensor, not empty
    reduce_range : bool
        Use the integers 0..127 instead of 0..255.

    Returns
    -------
    QParams
        Per tensor, uint8.

    Raises
    ------
    ValueError
        If ``x`` is empty or holds a NaN or an infinity.

    Examples
    --------
    >>> grid = choose_dynamic_qparams(torch.tensor([-1.0, 1.54]), reduce_range=True)
    >>> round(grid.scale.item(), 6), grid.zero_point.item()
    (0.02, 50)
    """
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise ValueError("x is empty or holds a NaN or an infinity: it has no range")
    last = 127 if reduce_range else 255
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = (high - low) / last or 0.1
    smallest = torch.tensor(6.1e-5).item()
    if scale < smallest:
        # Stretch the range about zero until its step is not too small.
        low, high = low * smallest / scale, high * smallest / scale
        scale = smallest
    from_low, from_high = -low / scale, last - high / scale
    zero_point = from_low if -abs(low / scale) < last - abs(high / scale) else from_high
    nearest = round(min(max(zero_point, 0), last))
    return QParams(
        torch.tensor(scale), torch.tensor(nearest, dtype=torch.int32), 0, 255
    )


class WeightOnlyInt8Linear(nn.Module):
    """A Linear whose weight is held in int8 and read back as float in each call.

    Nothing in it is trained unless asked: what :class:`LoRALinear` needs below it. The
    gradient passes through to the input, and to ``scale`` once that is thawed.

    Attributes
    ----------
    q : int8 buffer, shape (out_features, in_features)
    scale : float parameter, shape (out_features,), frozen
        The step of each row; ``layer.scale.requires_grad_()`` thaws it. Training only
        the scales is the idea of PEQA (Kim et al. 2023, arXiv:2305.14152).
    bias : float parameter, shape (out_features,), frozen; or None

    Examples
    --------
    >>> layer = WeightOnlyInt8Linear.from_float(nn.Linear(4, 2))
    >>> x = torch.ones(1, 4, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> layer.q.dtype, x.grad is not None, layer.scale.grad is None
    (torch.int8, True, True)
    """

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("q", q)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = q.shape

    @classmethod
    def from_float(cls, linear: nn.Linear) -> "WeightOnlyInt8Linear":
        """Quantize the weight of a float layer, symmetrically, a scale for each row.

        Raises
        ------
        TypeError
            If ``linear`` is not an ``nn.Linear``.
        ValueError
            If its weight holds a NaN or an infinity.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(f"expected an nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach()
        grid = choose_qparams(weight, signed=True, symmetric=True, axis=0)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(quantize(weight, grid).q, grid.scale.to(weight.dtype), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (..., in_features) to float (..., out_features)."""
        weight = self.q * self.scale[:, None]
        return nn.functional.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """Say in ``repr`` what an ``nn.Linear`` says."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class LoRALinear(nn.Module):
    """A frozen linear layer and, beside it, a trainable one of low rank.

    ::

        y = base(x) + alpha / rank * (x @ down.T) @ up.T

    ``up`` starts at zero, so that at first the sum is the base's output exactly.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1. On a quantized base it is the
    idea of QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

    Parameters
    ----------
    base : nn.Module
        Maps float (..., in_features) to float (..., out_features) and has both as
        attributes. Its parameters are frozen in place.
    rank : int
        1 to the smaller of the two numbers of features.
    alpha : float, optional
        Scales the adapter; default: ``rank``, a factor of 1.
    rng : torch.Generator
        On the CPU. Draws ``down``, uniform in +/- 1/sqrt(in_features).

    Attributes
    ----------
    down : parameter, shape (rank, in_features)
    up : parameter, shape (out_features, rank)

    Raises
    ------
    TypeError
        If ``base`` does not say how many features it has.
    ValueError
        If ``rank`` is out of range.

    Examples
    --------
    >>> base = nn.Linear(4, 3)
    >>> layer = LoRALinear(base, rank=1, rng=torch.Generator().manual_seed(0))
    >>> x = torch.ones(1, 4)
    >>> torch.equal(layer(x), base(x))
    True
    >>> [name for name, p in layer.named_parameters() if p.requires_grad]
    ['down', 'up']
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        alpha: float | None = None,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        if not (hasattr(base, "in_features") and hasattr(base, "out_features")):
            raise TypeError(
                f"{type(base).__name__} does not have in_features and out_features"
            )
        last = min(base.in_features, base.out_features)
        if type(rank) is not int or not 1 <= rank <= last:
            raise ValueError(f"rank must be in 1..{last}, got {rank}")
        self.base = base.requires_grad_(False)
        self.factor = (rank if alpha is None else alpha) / rank
        # Like the base; a packed one has no parameter, and takes and gives float32.
        like = next(base.parameters(), torch.empty(0))
        bound = 1 / math.sqrt(base.in_features)
        down = torch.empty(rank, base.in_features).uniform_(
            -bound, bound, generator=rng
        )
        self.down = nn.Parameter(down.to(like))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank).to(like))

    def forward(self, x: Tensor) -> Tensor:
        """Map float (..., in_features) to float (..., out_features)."""
        return self.base(x) + self.factor * (x @ self.down.T) @ self.up.T


def _unpack(module: nn.Module) -> tuple[QTensor, Tensor | None]:
    """Weight and bias of a packed module."""
    bias = module.bias()
    return QTensor.from_torch(module.weight()), None if bias is None else bias.detach()


def _check_module(module: nn.Module, package: str, name: str, *, dynamic: bool) -> None:
    """Refuse every module but the one named: a subclass computes something else."""
    kind = type(module)
    known = kind.__module__.startswith(package) and kind.__name__ == name
    packed = hasattr(module, "_packed_params")
    if not (known and packed and dynamic == ("dynamic" in kind.__module__)):
        raise TypeError(
            f"expected a converted {package}...{name}, "
            f"got {kind.__module__}.{kind.__name__}"
        )
    if module._forward_hooks:
        raise ValueError(
            f"{kind.__name__} has a forward hook, such as the clamp of a narrow grid: "
            "what it does to the output is not reproduced here"
        )


def _known_engine(engine: str | None) -> str:
    """Name the engine to reproduce; by default the one in use."""
    engine = engine or torch.backends.quantized.engine
    if engine not in ENGINES:
        raise ValueError(
            f"the arithmetic of engine {engine!r} is not reproduced here; "
            f"known are {', '.join(ENGINES)}"
        )
    return engine
