"""The claims of the tale and their verdicts; a sentence of the book becomes a check.

A *trial* asks where a claim holds. Each case is a sentence and a measured truth value,
and the verdict follows from them: all true is **upheld**, all false **overturned**, a
mixture **it depends**. A trial that finds another verdict than the one recorded here
raises, and so stops the build.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

UPHELD = "upheld"
OVERTURNED = "overturned"
DEPENDS = "it depends"


class ClaimError(AssertionError):
    """A sentence of the book disagrees with what was just measured."""


@dataclass(frozen=True)
class Claim:
    """One sentence of the tale.

    Attributes
    ----------
    id : str
        "T01" to "T27".
    says : str
        What the tale says, in our words.
    chapter : int
        The number of the chapter that tries it.
    verdict : str or None
        UPHELD, OVERTURNED or DEPENDS; None until its chapter has tried it.
    evidence : str
        What the trial found, in a sentence; empty until then.
    """

    id: str
    says: str
    chapter: int
    verdict: str | None = None
    evidence: str = ""


_ALL = (
    Claim(
        "T01",
        "With nn.Linear, weights and activations are quantized, each on its own.",
        5,
        OVERTURNED,
        "The weight is float32, a forward pass changes none of its bits, and the "
        "outputs lie on no 8-bit grid.",
    ),
    Claim(
        "T02",
        "nn.Linear stays in floating point while it computes.",
        5,
        UPHELD,
        "Float32 after every module, no operator that quantizes, and a gradient for "
        "every parameter.",
    ),
    Claim(
        "T03",
        "nn.Linear is not the most memory-efficient module.",
        5,
        UPHELD,
        "It holds close to four times the bytes of each int8 form, "
        "in memory and on disk.",
    ),
    Claim(
        "T04",
        "nn.quantized.Linear saves memory by quantizing per channel.",
        6,
        OVERTURNED,
        "The saving comes from int8; per channel adds 8 bytes for each row "
        "and buys precision of the weight.",
    ),
    Claim(
        "T05",
        "nn.quantized.Linear takes more time than nn.Linear.",
        6,
        DEPENDS,
        "With one row of input, slower at 64 x 64 and faster at 4096 x 4096.",
    ),
    Claim(
        "T06",
        "nn.quantized.Linear computes in quantized arithmetic.",
        6,
        UPHELD,
        "An integer reference gives the kernel's output on all of 115,536 elements.",
    ),
    Claim(
        "T07",
        "The dynamic module is more accurate for a specific range of values.",
        7,
        DEPENDS,
        "Closer to float when the range drifts from calibration; the same input "
        "integers when it stays; and one wild row spoils its whole batch.",
    ),
    Claim(
        "T08",
        "The dynamic module needs no passes over data to collect statistics.",
        7,
        UPHELD,
        "The model never runs while it is converted, and its error stays below 1 % "
        "from 1/64 to 1,000 times the usual range.",
    ),
    Claim(
        "T09",
        "The dynamic module takes more memory than the static one.",
        7,
        DEPENDS,
        "Less in memory and on disk, but its activations stay float32 "
        "and a call peaks higher.",
    ),
    Claim(
        "T10",
        "LinearReLU reduces the need for negative weights.",
        8,
        OVERTURNED,
        "The weight is the same bit for bit, ReLU clamps outputs, and without its "
        "negative weights the network fails.",
    ),
    Claim(
        "T11",
        "LinearReLU is fast.",
        8,
        UPHELD,
        "One operator where there were two; at no shape tried slower than the pair "
        "by a tenth, beyond noise.",
    ),
    Claim(
        "T12",
        "LinearReLU is accurate.",
        8,
        UPHELD,
        "Its grid spends no integer on values that ReLU removes: a smaller step and "
        "a higher SQNR than the pair's.",
    ),
    Claim(
        "T13",
        "LinearReLU wastes memory when there are many ReLUs.",
        8,
        OVERTURNED,
        "The same bytes and the same peak as the pair, and one tensor less for each "
        "ReLU.",
    ),
    Claim(
        "T14",
        "nn.quantized.Linear is the best balance of memory and time.",
        9,
        DEPENDS,
        "Faster than float at 2048 wide, with half of dynamic's peak; not at 64 "
        "wide, not with engine qnnpack, and never better than fused before a ReLU.",
    ),
    Claim(
        "T15",
        "quantize_dynamic quantizes weights and activations.",
        10,
        UPHELD,
        "int8 weights, and an input that every call rounds, whatever PyTorch's own "
        "docstring says of weights only.",
    ),
    Claim(
        "T16",
        "The quantized model can then be trained.",
        10,
        OVERTURNED,
        "No parameter for an optimizer, and no gradient through static or dynamic "
        "layers.",
    ),
    Claim(
        "T17",
        "A quantized layer is frozen by layer.weight.requires_grad = False.",
        10,
        OVERTURNED,
        "weight is a method and an AttributeError comes back; a converted layer has no "
        "parameter to freeze.",
    ),
    Claim(
        "T18",
        "Freezing the last layer leaves only the final layer to train.",
        12,
        OVERTURNED,
        "Frozen, the last layer is the one that stays bit for bit: the others move, or "
        "none at all if the last layer is a dynamic one.",
    ),
    Claim(
        "T19",
        "convert after quantize_dynamic finishes the optimization.",
        10,
        OVERTURNED,
        "The same modules and the same outputs: there is nothing left to convert.",
    ),
    Claim(
        "T20",
        "nn.quantized.Linear is built with the argument bias=True.",
        10,
        OVERTURNED,
        "A TypeError; the static and the dynamic module call it bias_.",
    ),
    Claim(
        "T21",
        "nn.quantized.Linear can stand in a float model as it is.",
        10,
        OVERTURNED,
        "It refuses a float before prepare, after it, and after convert: the stubs are "
        "missing. (A dynamic layer would take it.)",
    ),
    Claim(
        "T22",
        "convert turns nn.ReLU into nn.quantized.ReLU.",
        10,
        OVERTURNED,
        "There is no such class any more; nn.ReLU stays and works on quantized "
        "tensors.",
    ),
    Claim(
        "T23",
        "fbgemm is the popular configuration for CPUs.",
        3,
        DEPENDS,
        "Since PyTorch 2.0 torch chooses x86 there, which computes a linear layer with "
        "FBGEMM's kernel: another name, the same integers.",
    ),
    Claim(
        "T24",
        "Athena is a fellow Titan of Prometheus.",
        4,
        OVERTURNED,
        "Hesiod's list of the twelve Titans (Theogony 133-137) holds neither her nor a "
        "parent of hers.",
    ),
    Claim(
        "T25",
        "PyTorch's quantization is used in Facebook's Caffe2Go.",
        4,
        OVERTURNED,
        "Caffe2Go was announced in November 2016, before PyTorch was public (2017) and "
        "could quantize (2019).",
    ),
    Claim(
        "T26",
        "The term fine-tuning comes from a paper by LeCun and others of 1995.",
        11,
        OVERTURNED,
        "The paper of that title is of November 1998; an abstract of December 1989 "
        'already has "all-net fine tuning", and no source tells who coined it.',
    ),
    Claim(
        "T27",
        "PyTorch was first released in October 2016.",
        10,
        OVERTURNED,
        "Alphas since the summer of 2016, public since January 2017, and version 1.0, "
        "which the tale's source is about, since December 2018.",
    ),
)

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in _ALL}
"""All claims of the tale by id."""


def try_claim(claim_id: str, cases: Mapping[str, bool]) -> None:
    """Print the verdict that ``cases`` give; raise if it is not the recorded one.

    Parameters
    ----------
    claim_id : str
        "T01" to "T27".
    cases : mapping of str to bool
        A case in words, and whether the *claim holds* there, as measured.

    Raises
    ------
    ClaimError
        If the verdict is not the recorded one, or none is recorded.
    ValueError
        If there is no such claim or no case, or a case is not True or False.

    Examples
    --------
    >>> try_claim("T02", {"float32 in, float32 out": True})
    T02 upheld: nn.Linear stays in floating point while it computes.
        holds  float32 in, float32 out
    """
    if claim_id not in CLAIMS:
        raise ValueError(f"no claim {claim_id!r}: known are T01 to T{len(CLAIMS):02d}")
    if not cases:
        raise ValueError(f"{claim_id} was tried on no case: give at least one")
    for case, holds in cases.items():
        if not isinstance(holds, bool):
            raise ValueError(f"case {case!r} must be True or False, got {holds!r}")
    claim = CLAIMS[claim_id]
    held = sum(cases.values())
    verdict = UPHELD if held == len(cases) else DEPENDS if held else OVERTURNED
    lines = [f"{claim_id} {verdict}: {claim.says}"]
    lines += [f"    {'holds' if holds else 'fails'}  {c}" for c, holds in cases.items()]
    text = "\n".join(lines)
    if verdict != claim.verdict:
        raise ClaimError(f"recorded is {claim.verdict!r}, but measured:\n{text}")
    print(text)


def check_close(says: str, measured: float, expected: float, *, rel: float) -> None:
    """Print one line if ``measured`` is within ``rel`` of ``expected``; else raise.

    The line shows the bounds and not the measurement, so that it reads the same on
    every machine on which it is true.

    Raises
    ------
    ClaimError
        If the sentence is false; a NaN is false.

    Examples
    --------
    >>> check_close("int8 holds a quarter of the bytes", 0.2502, 0.25, rel=0.01)
    ok  int8 holds a quarter of the bytes: 0.25 within 1 %
    """
    if rel <= 0:
        raise ValueError(f"rel must be positive, got {rel}")
    # Written so that a NaN, for which every comparison is false, fails.
    ok = abs(measured - expected) <= rel * abs(expected)
    _report(says, ok, measured, f"{expected:.4g} within {100 * rel:.4g} %")


def check_between(says: str, measured: float, low: float, high: float) -> None:
    """Print one line if ``low <= measured <= high``; else raise.

    Raises
    ------
    ClaimError
        If the sentence is false; a NaN is false.

    Examples
    --------
    >>> check_between("most digits are recognized", 0.949, 0.9, 1.0)
    ok  most digits are recognized: between 0.9 and 1
    """
    ok = low <= measured <= high
    _report(says, ok, measured, f"between {low:.4g} and {high:.4g}")


@contextmanager
def raises(message: str) -> Iterator[None]:
    """Print the error that a ``with`` block raises; its text must hold ``message``.

    Raises
    ------
    ClaimError
        If the block raises nothing, or something else.

    Examples
    --------
    >>> with raises("division by zero"):
    ...     1 / 0
    ZeroDivisionError: division by zero
    """
    try:
        yield
    except Exception as error:
        if message not in str(error):
            raise ClaimError(f"expected {message!r}, but got: {error}") from error
        print(f"{type(error).__name__}: {message}")
        return
    raise ClaimError(f"expected {message!r}, but nothing was raised")


@contextmanager
def warns(message: str) -> Iterator[None]:
    """Print the warning that a ``with`` block gives; its text must hold ``message``.

    All warnings of the block are caught; errors are not.

    Raises
    ------
    ClaimError
        If no warning of the block holds ``message``.

    Examples
    --------
    >>> with warns("too dark"):
    ...     warnings.warn("it is too dark to read", stacklevel=2)
    UserWarning: too dark
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    kinds = [w.category.__name__ for w in caught if message in str(w.message)]
    if not kinds:
        heard = [str(w.message) for w in caught]
        raise ClaimError(f"expected the warning {message!r}, but heard: {heard}")
    print(f"{kinds[0]}: {message}")


def _report(says: str, ok: bool, measured: float, bounds: str) -> None:
    """Print the sentence with its bounds if it is true, else raise the value."""
    if not ok:
        raise ClaimError(f"{says}: expected {bounds}, measured {measured:.6g}")
    print(f"ok  {says}: {bounds}")
