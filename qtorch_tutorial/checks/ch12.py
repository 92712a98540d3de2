"""Checks of chapter 12, "Freezing and thawing"."""

import copy

import torch
from torch import Tensor, nn
from torch.ao.quantization import PerChannelMinMaxObserver

from qtorch_tutorial import models, repro
from qtorch_tutorial.checks import Wrong, answer_of
from qtorch_tutorial.layers import LoRALinear


def ex1(answer: object) -> None:
    """Check exercise 12.1: names that begin alike, modules within modules."""
    rng = repro.generator(1201)
    body = models.make_tale_network((3,) * 8, rng=rng)  # layers 0, 2, ..., 12
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", models.make_tale_network((3, 2), rng=rng))
    model.add_module("head2", nn.Linear(2, 2))
    for names in (["head"], ["body.2", "body.12"], ["body"], ["head2", "body.10"]):
        own = copy.deepcopy(model)
        own.body[2].requires_grad_(False)
        got = answer_of(answer, own, names)
        thawed = sorted(n for n, p in own.named_parameters() if p.requires_grad)
        _check_thawed(thawed, own, names)
        if not (isinstance(got, list | tuple) and all(isinstance(n, str) for n in got)):
            raise Wrong("return a list of names")
        if sorted(got) != thawed:
            raise Wrong(
                "the right parameters are thawed, but you return something else: "
                "the names of parameters, like 'head.0.weight'"
            )


def _check_thawed(thawed: list[str], model: nn.Module, names: list[str]) -> None:
    """Compare what requires a gradient with what should, and name the mistake."""
    every = [name for name, _ in model.named_parameters()]
    right = sorted(p for p in every if any(p.startswith(f"{n}.") for n in names))
    if thawed == right:
        return
    if set(thawed) == {n for n in every if not n.startswith("body.2.")}:
        raise Wrong(
            "nothing was frozen: `requires_grad = False` on a module sets an attribute "
            "of the module; requires_grad_(False) reaches its parameters"
        )
    if not thawed:
        raise Wrong(f"nothing in {names} is thawed: reach what stands inside it, too")
    if set(thawed).isdisjoint(right):
        raise Wrong(f"you froze {names} and left others: the other way round")
    missing = sorted(set(right) - set(thawed))
    if missing and all(name.startswith("body.2.") for name in missing):
        raise Wrong("body.2 was frozen before you came: thaw what is named")
    extra = sorted(set(thawed) - set(right))
    if extra and any(extra[0].startswith(name) for name in names):
        raise Wrong(
            f"{extra[0]} is thawed too: its name only begins like one of {names}"
        )
    raise Wrong(f"for {names} these require a gradient: {', '.join(thawed)}")


def ex2(answer: object) -> None:
    """Check exercise 12.2: Adam itself is the judge."""
    rng = repro.generator(1202)
    for shapes, rank in (([(7, 5), (4, 7)], 2), ([(30, 20), (9, 30), (3, 9)], 3)):
        got = answer_of(answer, shapes, rank)
        if not (isinstance(got, tuple | list) and len(got) == 2):
            raise Wrong("return two numbers: bytes trained, bytes of Adam's state")
        trained, in_adam = _measured(shapes, rank, rng)
        whole = 4 * sum(out * features for out, features in shapes)
        if got[0] == whole:
            raise Wrong("those are the bytes of the whole weights: an adapter is thin")
        if got[0] == trained // 4:
            raise Wrong("you count numbers: a float32 has 4 bytes")
        if got[0] != trained:
            raise Wrong(
                f"rank {rank} on {shapes} trains {trained} bytes, not {got[0]}: down "
                "has (rank, in) numbers and up (out, rank)"
            )
        counters = in_adam - 2 * trained
        mistakes = {
            trained: "Adam keeps two numbers for each parameter, not one",
            trained + counters: "Adam keeps two numbers for each parameter, not one",
            2 * trained: "each tensor has a counter of 4 bytes besides",
            2 * trained + counters // 2: "an adapter is two tensors, each counts",
            2 * trained + 4: "every tensor has a counter of its own, not all together",
            3 * trained + counters: "the gradients are not part of Adam's state",
        }
        if got[1] != in_adam:
            raise Wrong(mistakes.get(got[1], f"Adam holds {in_adam} bytes"))


def _measured(
    shapes: list[tuple[int, int]], rank: int, rng: torch.Generator
) -> tuple[int, int]:
    """Bytes of real adapters and of a real Adam after its first step."""
    bases = [models.make_tale_network((i, o), rng=rng)[0] for o, i in shapes]
    adapters = [LoRALinear(base, rank=rank, rng=rng) for base in bases]
    trained = [p for a in adapters for p in a.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    state = [t for entry in adam.state.values() for t in entry.values()]
    return sum(t.nbytes for t in trained), sum(t.nbytes for t in state)


def _layer(
    rng: torch.Generator, batch: int, features: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, integers and scales; the first and last want a gradient."""
    x = torch.randn(batch, features, generator=rng, requires_grad=True)
    q = torch.randint(-128, 128, (outputs, features), generator=rng).to(torch.int8)
    scale = 0.01 + torch.rand(outputs, generator=rng)
    return x, q, scale.requires_grad_()


def ex3(answer: object) -> None:
    """Check exercise 12.3: autograd is the judge."""
    rng = repro.generator(1203)
    for batch, features, outputs in ((6, 5, 3), (3, 8, 4)):
        x, q, scale = _layer(rng, batch, features, outputs)
        x = x.detach()
        grad_y = torch.randn(batch, outputs, generator=rng)
        terms = grad_y * nn.functional.linear(x, q * scale[:, None])
        (right,) = torch.autograd.grad(terms.sum(), scale)
        got = answer_of(answer, x, q, grad_y)
        if not (isinstance(got, Tensor) and got.shape == (outputs,)):
            raise Wrong(f"each of the {outputs} scales has one gradient: sum the batch")
        if torch.allclose(got, right, rtol=1e-4, atol=1e-3):
            continue
        if torch.allclose(got * batch, right, rtol=1e-4, atol=1e-3):
            raise Wrong("sum over the batch: the mean is already in grad_y")
        if torch.allclose(got, (x @ q.float().T).sum(dim=0), rtol=1e-4, atol=1e-3):
            raise Wrong("where is grad_y? Multiply by it: the chain rule")
        if torch.allclose(got, grad_y.sum(dim=0), rtol=1e-4, atol=1e-3):
            raise Wrong("that is the gradient of the bias")
        separately = grad_y.sum(dim=0) * (x @ q.float().T).sum(dim=0)
        if torch.allclose(got, separately, rtol=1e-4, atol=1e-3):
            raise Wrong("multiply row by row first, then sum: not the two sums")
        raise Wrong("not the gradient that autograd gives; multiply q as floats")


def ex4(answer: object) -> None:
    """Check exercise 12.4: torch's observer grids the exact sum."""
    rng = repro.generator(1204)
    for outputs, features, rank, factor in ((4, 9, 2, 1.0), (6, 6, 2, 2.5)):
        _, q, scale = _layer(rng, 1, features, outputs)
        scale = scale.detach() / 50
        down = torch.randn(rank, features, generator=rng)
        up = torch.randn(outputs, rank, generator=rng)
        given = [t.clone() for t in (q, scale, down, up)]
        got = answer_of(answer, q, scale, down, up, factor)
        if not all(map(torch.equal, given, (q, scale, down, up))):
            raise Wrong("you change what you are given: make new tensors")
        _check_merged(got, q, scale, up @ down, factor)


def _check_merged(
    got: object, q: Tensor, scale: Tensor, adapter: Tensor, factor: float
) -> None:
    """Compare integers and scales, and recognize what was left out."""
    if not (isinstance(got, tuple | list) and len(got) == 2):
        raise Wrong("return two tensors: integers and scales")
    if not (isinstance(got[0], Tensor) and got[0].dtype == torch.int8):
        raise Wrong("the first result holds the integers, int8")
    if not (isinstance(got[1], Tensor) and got[1].shape == scale.shape):
        raise Wrong(f"give a scale for each row, shape {tuple(scale.shape)}")
    old = q * scale[:, None]
    if _is_grid_of(got, old + factor * adapter):
        return
    if torch.allclose(got[1], scale):
        raise Wrong("the scales are the old ones: the sum has another range")
    if _is_grid_of(got, old + adapter):
        raise Wrong("the factor is missing")
    if _is_grid_of(got, factor * adapter):
        raise Wrong("only the adapter: add it to the weight of the base")
    if _is_grid_of(got, q + factor * adapter):
        raise Wrong("an adapter is in floats, q in steps: dequantize q first")
    largest = (old + factor * adapter).abs().amax(dim=1)
    if torch.allclose(got[1], largest / 127, rtol=1e-5):
        raise Wrong("half of a grid of 256 integers has 127.5 steps, not 127")
    raise Wrong("not the grid of the sum: symmetric, a scale for each row")


def _is_grid_of(got: tuple[Tensor, Tensor], weight: Tensor) -> bool:
    """Whether these are the integers and scales that torch gives this weight."""
    with repro.quiet():
        observer = PerChannelMinMaxObserver(
            ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        )
        observer(weight)
        scale, zero_point = observer.calculate_qparams()
        grid = torch.quantize_per_channel(weight, scale, zero_point, 0, torch.qint8)
    # A sum in another order may land beyond a tie: one step off is allowed.
    off = (got[0].int() - grid.int_repr().int()).abs()
    return torch.allclose(got[1], scale, rtol=1e-5) and int(off.max()) <= 1
