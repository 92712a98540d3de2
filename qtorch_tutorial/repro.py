"""What makes a run repeatable: seeds, threads, the engine, and what machine this is.

Also the one place that knows torch's warnings about the end of ``torch.ao`` and the
quantized dtypes. They are true, and chapter 04 shows one; after that they repeat.
"""

import importlib.util
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import torch

LAST_TORCH_WITH_AO = "2.15"
"""The newest torch known to have ``torch.ao.quantization``."""

MODULES = (
    "torch.ao.quantization",
    "torch.ao.nn.quantized",
    "torch.ao.nn.quantized.dynamic",
    "torch.ao.nn.intrinsic.quantized",
)

# (category, start of the message), until torch removes what they announce.
_ANNOUNCED = (
    (DeprecationWarning, "torch.ao.quantization is deprecated"),
    (UserWarning, "torch.quantize_per_tensor, torch.quantize_per_channel and other"),
    (UserWarning, "Please use quant_min and quant_max to specify the range"),
    (UserWarning, "TypedStorage is deprecated"),  # from loading a quantized state
)


def silence_deprecations() -> None:
    """Silence the announced end of ``torch.ao`` for the rest of this process.

    For the import cell of a chapter. A package should use :func:`quiet`.
    """
    for category, start in _ANNOUNCED:
        warnings.filterwarnings("ignore", re.escape(start), category)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the announced end of ``torch.ao`` inside a ``with`` block only."""
    with warnings.catch_warnings():
        silence_deprecations()
        yield


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator of its own, seeded; the global one is left alone.

    Examples
    --------
    >>> torch.randint(10, (3,), generator=generator(0))
    tensor([4, 9, 3])
    """
    return torch.Generator().manual_seed(seed)


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Pack quantized weights for engine ``name`` inside a ``with`` block.

    The engine is read when a weight is packed, not when it runs.

    Raises
    ------
    ValueError
        If this build of torch does not have the engine.
    """
    check_engine(name)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def check_engine(name: str) -> None:
    """Raise a ValueError unless this build of torch has the quantized engine."""
    supported = _engines()
    if name not in supported:
        raise ValueError(
            f"quantized engine {name!r} is not supported here; "
            f"supported are {', '.join(supported) or 'none at all'}"
        )


def _engines() -> tuple[str, ...]:
    """Engines of this build of torch, without the placeholder "none"."""
    return tuple(e for e in torch.backends.quantized.supported_engines if e != "none")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads inside a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Probe:
    """What this machine has, as far as quantized linear modules care.

    Attributes
    ----------
    python, torch, torchvision, numpy : str
        Versions.
    platform, cpu : str
        Operating system and processor, in words.
    instructions : tuple of str
        Those of AVX2, AVX-512, VNNI and NEON dot that the processor has.
    engines : tuple of str
        The quantized engines of this build of torch.
    engine : str
        The one in use.
    threads : int
        Threads that torch computes with.
    """

    python: str
    torch: str
    torchvision: str
    numpy: str
    platform: str
    cpu: str
    instructions: tuple[str, ...]
    engines: tuple[str, ...]
    engine: str
    threads: int


def probe() -> Probe:
    """Look at this machine.

    Raises
    ------
    ImportError
        If this torch no longer has the modules of the book; the message names the
        last version that has them.
    """
    check_modules()
    return Probe(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=version("torchvision"),
        numpy=version("numpy"),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_capabilities().get("cpu_name") or platform.processor() or "unknown",
        instructions=_instructions(),
        engines=_engines(),
        engine=torch.backends.quantized.engine,
        threads=torch.get_num_threads(),
    )


def check_modules() -> None:
    """Raise an ImportError that says what to do if ``torch.ao`` is gone."""
    for name in MODULES:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise ImportError(
                f"torch {torch.__version__} has no {name}. The last known to have it "
                f"is {LAST_TORCH_WITH_AO}: pip install 'torch=={LAST_TORCH_WITH_AO}.*'"
            )


def banner() -> None:
    """Print, in three lines, what a stored output was made with."""
    here = probe()
    print(f"Python {here.python}, torch {here.torch}, {here.platform}")
    print(f"engine {here.engine} of {', '.join(here.engines)}; {here.threads} threads")
    print(f"{here.cpu}: {', '.join(here.instructions) or 'none of the known'}")


def _capabilities() -> dict:
    """Ask torch for its reading of the processor; empty before torch has one."""
    read = getattr(torch.cpu, "get_capabilities", None)
    return dict(read()) if read else {}


def _instructions() -> tuple[str, ...]:
    """Those instruction sets of the processor that decide how int8 is multiplied."""
    has = _capabilities()
    if not has and sys.platform == "linux":
        # torch before 2.12 has no public call that tells.
        with open("/proc/cpuinfo") as info:
            has = dict.fromkeys(info.read().split(), True)
    names = {
        "AVX2": ("avx2",),
        "AVX-512": ("avx512_f", "avx512f"),
        "VNNI": ("avx512_vnni", "avx_vnni"),
        "NEON dot": ("dot", "asimddp"),
    }
    return tuple(n for n, flags in names.items() if any(has.get(f) for f in flags))
