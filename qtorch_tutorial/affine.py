"""Affine quantization from first principles: the arithmetic every chapter rests on.

A float ``x`` is stored as an integer ``q`` on a grid of equal steps::

    q     = clamp(round(x / scale) + zero_point, qmin, qmax)      quantize
    x_hat = (q - zero_point) * scale                              dequantize

``round`` sends ties to the even neighbor. The integers and the two numbers that
give them a meaning travel together in a :class:`QTensor`.

The functions agree exactly, not nearly, with torch's observers and kernels: for that
they divide where torch divides and multiply by the reciprocal where torch does.
Nothing here knows about layers or models; ``torch`` is the only import.

Source of the formulas: Jacob et al. 2018, arXiv:1712.05877, section 2.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
"""The smallest scale, 2**-23, as in torch's observers; a constant needs no step."""


@dataclass(frozen=True)
class QParams:
    """What is needed to read integers back as floats.

    Attributes
    ----------
    scale : float32 tensor, > 0
        The float distance between two neighboring integers, one *step*.
        Shape ``()`` per tensor, ``(n,)`` per channel.
    zero_point : int32 tensor, same shape as ``scale``
        The integer that stands for exactly 0.0.
    qmin, qmax : int
        The ends of the integer grid, both inclusive.
    axis : int or None
        The dimension that has one scale for each index; None means per tensor.

    Examples
    --------
    >>> QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), -128, 127).signed
    True
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None

    @property
    def signed(self) -> bool:
        """Whether the grid holds negative integers (int8) or not (uint8)."""
        return self.qmin < 0

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, shaped so that they broadcast against ``x``."""
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


@dataclass(frozen=True)
class QTensor:
    """Integers together with the parameters that give them a meaning.

    Attributes
    ----------
    q : uint8 or int8 tensor, any shape
    qparams : QParams

    Examples
    --------
    >>> x = torch.tensor([-1.0, 0.0, 1.55])
    >>> quantize(x, choose_qparams(x)).q
    tensor([  0, 100, 255], dtype=torch.uint8)
    """

    q: Tensor
    qparams: QParams

    @property
    def shape(self) -> torch.Size:
        """The shape of the integers."""
        return self.q.shape

    def centered(self) -> Tensor:
        """Subtract the zero point: int32 steps from 0.0, same shape as ``q``."""
        return self.q.to(torch.int32) - self.qparams.along(self.q)[1]

    def dequantize(self) -> Tensor:
        """Read the integers back as float32; see :func:`dequantize`."""
        return dequantize(self)

    @classmethod
    def from_torch(cls, t: Tensor) -> "QTensor":
        """Take the integers, scale and zero point out of a torch quint8/qint8 tensor.

        Raises
        ------
        ValueError
            If ``t`` is not quantized to 8 bits.
        """
        if t.dtype not in (torch.quint8, torch.qint8):
            raise ValueError(f"expected a quint8 or qint8 tensor, got {t.dtype}")
        low, high = (-128, 127) if t.dtype == torch.qint8 else (0, 255)
        if t.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            scale, zero_point = t.q_per_channel_scales(), t.q_per_channel_zero_points()
            axis = t.q_per_channel_axis()
        else:
            scale, zero_point = (
                torch.tensor(t.q_scale()),
                torch.tensor(t.q_zero_point()),
            )
            axis = None
        qparams = QParams(scale.float(), zero_point.to(torch.int32), low, high, axis)
        return cls(t.int_repr(), qparams)

    def to_torch(self) -> Tensor:
        """Return the same integers and parameters as a torch quint8/qint8 tensor."""
        dtype = torch.qint8 if self.qparams.signed else torch.quint8
        # torch has no public call that takes integers. Quantizing the floats that they
        # stand for gives the same integers back: each lies exactly on its own step.
        scale, zero_point = self.qparams.scale.double(), self.qparams.zero_point.long()
        if self.qparams.axis is None:
            grid = (scale.item(), int(zero_point), dtype)
            return torch.quantize_per_tensor(self.dequantize(), *grid)
        grid = (scale, zero_point, self.qparams.axis, dtype)
        return torch.quantize_per_channel(self.dequantize(), *grid)


def choose_qparams(
    x: Tensor,
    *,
    bits: int = 8,
    signed: bool = False,
    symmetric: bool = False,
    reduce_range: bool = False,
    axis: int | None = None,
) -> QParams:
    """Fit an integer grid to the range of ``x``, as torch's MinMax observers do.

    The range is first widened to contain 0.0, so that zero has an exact image.
    An affine grid spends all its steps on that range. A symmetric one spreads them
    over ``[-m, m]``, ``m = max |x|``, and its zero point is fixed in the middle.

    Parameters
    ----------
    x : float tensor, any shape, not empty
    bits : int, 2 to 8
        The grid holds ``2**bits`` integers.
    signed : bool
        Integers around zero (int8) instead of from zero on (uint8).
    symmetric : bool
        Fix the zero point instead of fitting it.
    reduce_range : bool
        Give the range one bit less, as torch does for engines whose 8-bit products
        can overflow. Only the scale becomes coarser: torch still *stores* the full
        grid, so ``qmin`` and ``qmax`` of the result keep all its integers.
    axis : int or None
        Fit one scale for each index of this dimension instead of one for all.

    Returns
    -------
    QParams
        Equal (``==``) to what ``MinMaxObserver`` or ``PerChannelMinMaxObserver``
        computes for the same data.

    Raises
    ------
    ValueError
        If ``x`` is empty or holds a NaN or an infinity, or ``bits`` is not in 2..8, or
        the range of a symmetric unsigned grid is to be reduced (torch has no such).

    Examples
    --------
    A range of 2.55 in 255 steps gives a step of 0.01; -1.0 lands on 0, so 0.0 lands
    100 steps further:

    >>> grid = choose_qparams(torch.tensor([-1.0, 0.5, 1.55]))
    >>> round(grid.scale.item(), 6), grid.zero_point.item()
    (0.01, 100)
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2..8, got {bits}")
    if reduce_range and symmetric and not signed:
        raise ValueError("a symmetric unsigned grid has no reduced range in torch")
    if x.numel() == 0:
        raise ValueError(f"x is empty (shape {tuple(x.shape)}): it has no range")
    if not torch.isfinite(x).all():
        raise ValueError("x holds a NaN or an infinity: no finite scale can cover it")
    low, high = _range_with_zero(x, axis)
    qmin, qmax = _grid(bits, signed)
    first, last = _grid(bits - 1, signed) if reduce_range else (qmin, qmax)
    if symmetric:
        scale = torch.maximum(-low, high) / (float(last - first) / 2)
        scale = scale.clamp(min=EPS)
        # An unsigned grid has no middle integer: torch takes 128 for 8 bits, and the
        # lower neighbor of the middle for fewer.
        middle = 128 if bits == 8 else qmax // 2
        zero_point = torch.full_like(scale, 0 if signed else middle)
    else:
        scale = ((high - low) / float(last - first)).clamp(min=EPS)
        zero_point = (first - torch.round(low / scale)).clamp(first, last)
    axis = None if axis is None else axis % x.ndim
    return QParams(scale, zero_point.to(torch.int32), qmin, qmax, axis)


def quantize(x: Tensor, qparams: QParams) -> QTensor:
    """Round ``x`` to the nearest integers of the grid; values beyond its ends clamp.

    Parameters
    ----------
    x : float tensor, any shape
    qparams : QParams

    Returns
    -------
    QTensor
        Same shape as ``x``; int8 if the grid is signed, else uint8.

    Examples
    --------
    Ties go to the even integer, and 9.9 is beyond the end:

    >>> grid = choose_qparams(torch.tensor([0.0, 2.55]))
    >>> quantize(torch.tensor([0.005, 0.015, 0.025, 9.9]), grid).q
    tensor([  0,   2,   2, 255], dtype=torch.uint8)
    """
    scale, zero_point = qparams.along(x)
    q = torch.round(x * (1.0 / scale)) + zero_point
    storage = torch.int8 if qparams.signed else torch.uint8
    return QTensor(q.clamp(qparams.qmin, qparams.qmax).to(storage), qparams)


def dequantize(t: QTensor) -> Tensor:
    """Read integers back as float32: ``(q - zero_point) * scale``.

    Examples
    --------
    >>> x = torch.tensor([-1.0, 0.0, 1.55])
    >>> dequantize(quantize(x, choose_qparams(x)))
    tensor([-1.0000,  0.0000,  1.5500])
    """
    return t.centered().float() * t.qparams.along(t.q)[0]


class _StraightThrough(torch.autograd.Function):
    """Quantize and dequantize forward; let the gradient pass inside the grid.

    Rounding is flat almost everywhere, so its true gradient is zero and nothing would
    train. The straight-through estimator takes 1 inside the grid and 0 where the value
    was clamped (Bengio et al. 2013, arXiv:1308.3432).
    """

    @staticmethod
    def forward(ctx, x: Tensor, qparams: QParams) -> Tensor:
        scale, zero_point = qparams.along(x)
        q = torch.round(x * (1.0 / scale)) + zero_point
        ctx.save_for_backward((q >= qparams.qmin) & (q <= qparams.qmax))
        return (q.clamp(qparams.qmin, qparams.qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Quantize and dequantize in float, with a gradient that training can use.

    Values and gradients equal those of ``torch.fake_quantize_per_tensor_affine`` and
    ``torch.fake_quantize_per_channel_affine``.

    Parameters
    ----------
    x : float32 tensor, any shape
    qparams : QParams

    Returns
    -------
    float32 tensor
        Same shape as ``x``, every value on the grid.

    Examples
    --------
    >>> x = torch.tensor([0.004, 9.9], requires_grad=True)
    >>> fake_quantize(x, choose_qparams(torch.tensor([0.0, 2.55]))).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    return _StraightThrough.apply(x, qparams)


def _range_with_zero(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Least and greatest value, widened to contain 0.0, of all or of each channel."""
    if axis is None:
        low, high = torch.aminmax(x)
    else:
        low, high = torch.aminmax(x.movedim(axis, 0).reshape(x.shape[axis], -1), dim=1)
    return low.clamp(max=0.0).float(), high.clamp(min=0.0).float()


def _grid(bits: int, signed: bool) -> tuple[int, int]:
    """First and last integer of a grid of ``bits`` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
