"""The checks of chapter 5, on nn.Linear."""

import copy
import re
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qtorch_tutorial.checks import Wrong, answer_of

_BYTES_MISTAKES = {
    "you count numbers, and each takes 4 bytes": {"each": 1},
    "a float32 takes 4 bytes, not 8": {"each": 8},
    "the biases are missing": {"always": False},
    "with bias=False there are no biases to count": {"always": True},
    "a layer has one bias for each output, not for each input": {"per_input": True},
    "only the first layer is counted": {"layers": 1},
}


def ex1(answer: object) -> None:
    """Check exercise 5.1: the bytes of a network of nn.Linear, from its sizes."""
    cases = [
        ((784, 256, 10), True),
        ((784, 256, 256, 10), False),
        ((5, 1, 7, 2), True),
        ((3, 2), False),
    ]
    got, expected = [], []
    for sizes, bias in cases:
        count = answer_of(answer, sizes, bias)
        if not isinstance(count, int) or isinstance(count, bool):
            raise Wrong(f"return an int, not a {type(count).__name__}")
        layers = [nn.Linear(*pair, bias, device="meta") for pair in pairwise(sizes)]
        tensors = [p for layer in layers for p in layer.parameters()]
        got.append(count)
        expected.append(sum(p.numel() * p.element_size() for p in tensors))
    if got == expected:
        return
    for message, mistake in _BYTES_MISTAKES.items():
        if got == [_bytes(*case, **mistake) for case in cases]:
            raise Wrong(message)
    for (sizes, bias), count, right in zip(cases, got, expected, strict=True):
        if count != right:
            raise Wrong(f"sizes {sizes}, bias {bias}: {right} bytes, you have {count}")


def _bytes(
    sizes: tuple[int, ...],
    bias: bool,
    *,
    each: int = 4,
    always: bool | None = None,
    per_input: bool = False,
    layers: int | None = None,
) -> int:
    """Count the bytes by formula; the options are learners' mistakes."""
    bias = bias if always is None else always
    pairs = list(pairwise(sizes))[:layers]
    return each * sum(i * o + bias * (i if per_input else o) for i, o in pairs)


class _OnlySums(TorchFunctionMode):
    """Refuse what exercise 5.2 does not allow."""

    FORBIDDEN = re.compile(
        r"_*r?(?:linalg_)?(matmul|mm|bmm|mv|dot|vdot|vecdot|inner|addmm|addmv|"
        r"addbmm|baddbmm|multi_dot|chain_matmul|einsum|tensordot|linear|bilinear|grad|backward)_*"
    )

    def __torch_function__(
        self,
        func: Callable,
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        """Run ``func`` unless it is a matrix product or autograd."""
        if found := self.FORBIDDEN.fullmatch(func.__name__):
            raise Wrong(f"{found[1]} is not allowed: multiply elementwise, then sum")
        return func(*args, **(kwargs or {}))


def ex2(answer: object) -> None:
    """Check exercise 5.2: y and its gradients, by broadcasting."""
    for seed, (batch, inputs, outputs) in enumerate([(4, 3, 2), (2, 5, 3), (3, 3, 3)]):
        rng = torch.Generator().manual_seed(seed)
        x, w, b, g = (
            torch.randn(shape, generator=rng)
            for shape in ((batch, inputs), (outputs, inputs), outputs, (batch, outputs))
        )
        with _OnlySums():
            result = answer_of(answer, x.clone(), w.clone(), b.clone(), g.clone())
        if not isinstance(result, tuple) or len(result) != 4:
            raise Wrong("return the tuple (y, grad_x, grad_w, grad_b)")
        leaves = [t.double().requires_grad_() for t in (x, w, b)]
        y = nn.functional.linear(*leaves)
        right = (y.detach(), *torch.autograd.grad(y, leaves, g.double()))
        for name, mine, truth in zip(
            ("y", "grad_x", "grad_w", "grad_b"), result, right, strict=True
        ):
            _compare(name, mine, truth, b=b, batch=batch)


def _compare(name: str, mine: object, truth: Tensor, *, b: Tensor, batch: int) -> None:
    """Raise what is wrong with one of the four tensors of exercise 5.2."""
    if not isinstance(mine, Tensor):
        raise Wrong(f"{name} must be a tensor, got {type(mine).__name__}")
    if mine.shape != truth.shape:
        hint = {
            "y": "one output for each row of w: sum over in_features",
            "grad_x": "it has the shape of x: sum over out_features",
            "grad_w": "it has the shape of w, so g comes first: sum over the batch",
            "grad_b": "it has the shape of b: sum over the batch",
        }[name]
        shapes = f"{tuple(truth.shape)}, not {tuple(mine.shape)}"
        raise Wrong(f"{name} has shape {shapes}; {hint}")
    if mine.dtype != torch.float32:
        raise Wrong(f"{name} must be float32, got {mine.dtype}")

    def close(other: Tensor) -> bool:
        return torch.allclose(mine.double(), other, rtol=1e-5, atol=1e-5)

    if close(truth):
        return
    if name == "y" and close(truth - b):
        raise Wrong("y lacks the bias")
    if mine.ndim == 2 and mine.shape[0] == mine.shape[1] and close(truth.T):
        raise Wrong(f"{name} is transposed: look at the order of its axes")
    if name != "y" and close(truth / batch):
        raise Wrong(f"{name} is a mean over the batch: the chain rule gives a sum")
    raise Wrong(f"{name} has the right shape and wrong values")


# Seed of a network, and the share: chosen so that every mistake below shows somewhere.
# 190 of 200 rows agree in the second: not 0.95, which a float32 mean would just miss.
_BITS_CASES = ((8, 0.75), (0, 0.94), (4, 0.9), (12, 0.97), (5, 1.0), (3, 1.0))

_BITS_MISTAKES = {
    "each row has a grid of its own: axis=0": {"per_row": False},
    "round every nn.Linear, also one inside another module": {
        "select": nn.Module.children
    },
    "round every nn.Linear, not only the first": {
        "select": lambda m: list(m.modules())[1:2]
    },
    "a share equal to the limit is enough: compare with >=": {"strictly": True},
    "return the smallest number of bits, not the largest": {"order": range(8, 1, -1)},
    "the biases stay as they are": {"biases": True},
}


def ex3(answer: object) -> None:
    """Check exercise 5.3: the fewest bits that keep a share of the answers."""
    cases = [_bits_case(seed, share) for seed, share in _BITS_CASES]
    got, expected = [], []
    for model, x, share in cases:
        before = copy.deepcopy(model.state_dict())
        bits = answer_of(answer, model, x, share)
        if any(not torch.equal(before[k], v) for k, v in model.state_dict().items()):
            raise Wrong("your function changes the model: round a copy of it")
        if not isinstance(bits, int) or isinstance(bits, bool):
            raise Wrong(f"return the bits, an int, not a {type(bits).__name__}")
        got.append(bits)
        expected.append(_fewest_bits(model, x, share))
    for message, mistake in _BITS_MISTAKES.items():
        if got != expected and got == [_fewest_bits(*c, **mistake) for c in cases]:
            raise Wrong(message)
    for (_, _, share), bits, right in zip(cases, got, expected, strict=True):
        if bits != right:
            raise Wrong(f"for a share of {share} it takes {right} bits, not {bits}")
    _check_that_none_is_32(answer)


def _bits_case(seed: int, share: float) -> tuple[nn.Module, Tensor, float]:
    """Make a small network with one large row, and rows of input."""
    rng = torch.Generator().manual_seed(seed)
    inner = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), inner, nn.Linear(12, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
        model[0].weight[0] *= 30
        inner[0].weight[:, 0] /= 30
    return model, torch.randn(200, 8, generator=rng), share


@torch.no_grad()
def _fewest_bits(
    model: nn.Module,
    x: Tensor,
    share: float,
    *,
    per_row: bool = True,
    select: Callable[[nn.Module], Iterable[nn.Module]] = nn.Module.modules,
    strictly: bool = False,
    order: range = range(2, 9),
    biases: bool = False,
) -> int:
    """Find the bits with torch's own kernels; the options are learners' mistakes."""
    answers = model(x).argmax(dim=1)
    for bits in order:
        rounded = copy.deepcopy(model)
        for module in select(rounded):
            if not isinstance(module, nn.Linear):
                continue
            _round_(module.weight, bits, per_row)
            if biases:
                _round_(module.bias, bits, per_row)
        same = (rounded(x).argmax(dim=1) == answers).double().mean().item()
        if same > share or (same == share and not strictly):
            return bits
    return 32


def _round_(parameter: Tensor, bits: int, per_row: bool) -> None:
    """Put a weight or a bias on symmetric signed grids, with torch's kernel."""
    rows = parameter.reshape(len(parameter), -1)
    largest = rows.abs().amax(dim=1) if per_row else rows.abs().max().expand(len(rows))
    scale = largest / ((2**bits - 1) / 2)
    zero_point = torch.zeros(len(rows), dtype=torch.int32)
    first, last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    grid = (scale, zero_point, 0, first, last)
    rounded = torch.fake_quantize_per_channel_affine(rows, *grid)
    parameter.copy_(rounded.reshape(parameter.shape))


def _check_that_none_is_32(answer: object) -> None:
    """Ask about a layer that no 8 bits can hold: 1 and 2 vanish beside 1000."""
    layer = nn.Linear(2, 2, bias=False)
    layer.load_state_dict({"weight": torch.tensor([[1000.0, 1.0], [1000.0, 2.0]])})
    try:
        bits = answer_of(answer, layer, torch.ones(1, 2), 1.0)
    except Wrong as error:
        raise Wrong("return 32, not None, when 8 bits are not enough") from error
    if bits == 2:
        raise Wrong("the model may itself be one nn.Linear: round its weight too")
    if bits != 32:
        raise Wrong(f"return 32, not {bits}, when 8 bits are not enough")
