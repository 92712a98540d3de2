"""Checks of the exercises of chapter 4: verdicts, keys, bytes, lamps in the dark."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qtorch_tutorial import convert, models, repro
from qtorch_tutorial.checks import Wrong, answer_of

FORMS = ("float", "static", "dynamic", "fused")


def ex1(answer: Callable[[dict[str, bool]], str]) -> None:
    """Check exercise 4.1: the verdict that follows from cases."""
    plain = {
        (True,): "upheld",
        (False,): "overturned",
        (True, True): "upheld",
        (False, False): "overturned",
    }
    for values, expected in plain.items():
        given = answer_of(answer, _cases(*values))
        if given != expected:
            raise Wrong(f"cases {list(values)} are {expected!r}, you said {given!r}")
    few = answer_of(answer, _cases(False, True, False))
    many = answer_of(answer, _cases(True, False, True))
    if (few, many) == ("overturned", "upheld"):
        raise Wrong("a trial is no vote: the majority does not decide")
    if "upheld" in (few, many):
        raise Wrong("a claim with one case that fails is not upheld")
    if "overturned" in (few, many):
        raise Wrong("a claim with one case that holds is not overturned")
    if (few, many) != ("it depends", "it depends"):
        raise Wrong(f"a mixture is spelled 'it depends', you said {few!r}")
    try:
        given = answer({})
    except ValueError:
        return
    raise Wrong(f"a trial of no case must raise a ValueError, yours gave {given!r}")


def ex2(answer: Callable[[str, bool], set[str]]) -> None:
    """Check exercise 4.2: the keys of a state dict, against real modules."""
    for bias in (True, False):
        for form in FORMS:
            given = answer_of(answer, form, bias)
            expected = set(_lamp(form, bias=bias).state_dict())
            if not isinstance(given, set | frozenset):
                raise Wrong(f"return a set of strings, not a {type(given).__name__}")
            if given != expected:
                raise Wrong(_wrong_keys(form, bias, given, expected))


def ex3(answer: Callable[[int, int, bool, bool], int]) -> None:
    """Check exercise 4.3: the bytes of an int8 layer, against counted tensors."""
    for shape in ((30, 7), (5, 64)):
        for bias, per_channel in (
            (False, False),
            (False, True),
            (True, False),
            (True, True),
        ):
            given = answer_of(answer, *shape, bias, per_channel)
            if not isinstance(given, int) or isinstance(given, bool):
                raise Wrong(f"return an int, not a {type(given).__name__}")
            held = _held(*shape, bias, per_channel)
            expected = sum(t.numel() * t.element_size() for t in held)
            if given != expected:
                text = f"{shape[0]} -> {shape[1]}, bias={bias}, {per_channel=}"
                why = _lost_bytes(expected - given, *shape, bias, per_channel)
                raise Wrong(f"{text}: expected {expected}, you said {given}. {why}")


def ex4(answer: Callable[[nn.Module, Tensor], str]) -> None:
    """Check exercise 4.4: a lamp is known by what it takes and gives."""
    x = torch.rand(32, 6, generator=repro.generator(1)) * 2 - 1
    for form in FORMS:
        _name_it(answer, _lamp(form, bias=True), x, form, "")
    frozen = _lamp("float", bias=True).requires_grad_(False)
    _name_it(answer, frozen, x, "float", "A frozen flame still has parameters.")
    shifted = _lamp("fused", bias=True)
    shifted.zero_point = 40
    hint = "A shaded lamp may have any zero point: look at the values below it."
    _name_it(answer, shifted, x, "fused", hint)
    for form in FORMS:
        hint = "It is wrapped: its class and attributes tell nothing, a call does."
        _name_it(answer, _Lantern(_lamp(form, bias=True)), x, form, hint)


class _Lantern(nn.Module):
    """A module around a module, which hides its class and its attributes."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


def _name_it(
    answer: Callable[[nn.Module, Tensor], str],
    module: nn.Module,
    x: Tensor,
    form: str,
    hint: str,
) -> None:
    """Let the learner name one module; refuse a wrong name with a hint."""
    try:
        given = answer_of(answer, module, x)
    except NotImplementedError as error:
        raise Wrong(
            f"a {form!r} lamp takes quint8 only, and you gave it floats: catch the "
            "NotImplementedError and quantize x"
        ) from error
    except AttributeError as error:
        raise Wrong(f"you read an attribute ({error}). {hint}") from error
    if given == form:
        return
    if not hint and {given, form} == {"static", "fused"}:
        hint = "One of the two gives no value below zero: compare their outputs."
    if not hint and {given, form} == {"float", "dynamic"}:
        hint = "Both take and give floats, but only one has parameters."
    raise Wrong(f"a {form!r} lamp was called {given!r}. {hint}")


def _cases(*values: bool) -> dict[str, bool]:
    return {f"case {i}": value for i, value in enumerate(values)}


def _layer(in_features: int, out_features: int, bias: bool) -> nn.Sequential:
    """Linear, ReLU."""
    sizes = (in_features, out_features, 1)
    return models.make_tale_network(sizes, rng=repro.generator(0), bias=bias)[:2]


def _lamp(form: str, *, bias: bool) -> nn.Module:
    """Make the linear module of a form from Linear(6, 4) and its ReLU."""
    calibration = torch.rand(64, 6, generator=repro.generator(2)) * 2 - 1
    (chosen,) = (f for f in convert.FORMS if f.name == form)
    return chosen.make(_layer(6, 4, bias), calibration).get_submodule("0")


def _held(
    in_features: int, out_features: int, bias: bool, per_channel: bool
) -> list[Tensor]:
    """Make tensors of the shapes and types that an int8 linear module holds.

    Not a real module: packed for QNNPACK, one without a bias holds a bias of zeros.
    """
    pairs = (out_features,) if per_channel else ()
    return [
        torch.zeros(out_features, in_features, dtype=torch.int8),
        torch.zeros(out_features if bias else 0),
        *(torch.zeros(shape) for shape in (pairs, ())),
        *(torch.zeros(shape, dtype=torch.int32) for shape in (pairs, ())),
    ]


def _wrong_keys(form: str, bias: bool, given: set[str], expected: set[str]) -> str:
    """Say what is wrong with a set of keys."""
    if form == "float":
        return f"an nn.Linear with {bias=} has the keys {sorted(expected)}"
    if given & {"weight", "bias"}:
        return (
            f"{form}: weight and bias lie packed in one object; neither has a key of "
            "its own"
        )
    if "_packed_params" in given:
        return (
            f"{form}: _packed_params is a module, so its name is only the start of a "
            "key: what does it hold?"
        )
    missing, extra = sorted(expected - given), sorted(given - expected)
    if form == "dynamic" and missing == ["scale", "zero_point"]:
        return "dynamic: scale and zero_point are inherited, read or not"
    return f"{form} with {bias=}: missing {missing}, too many {extra}"


def _lost_bytes(
    gap: int, in_features: int, out_features: int, bias: bool, per_channel: bool
) -> str:
    """Say where ``gap`` bytes went, for shapes and flags that make them differ."""
    weights, grids = in_features * out_features, out_features if per_channel else 1
    known = {
        -3 * weights: "A weight takes one byte here, not four.",
        8 * (grids - 1): "Per channel, each output has a scale and a zero point.",
        4 * grids: "A scale and its zero point take 4 + 4 bytes.",
        -4 * out_features: "There is no bias to count.",
        8: "A scale and a zero point are missing: the weight has them, the output too.",
    }
    if bias:
        known |= {
            4 * out_features: "The bias is missing: a float32 for each output.",
            3 * out_features: "The bias stays float32, four bytes each.",
        }
    direction = "few" if gap > 0 else "many"
    return known.get(gap, f"That is {abs(gap)} bytes too {direction}.")
