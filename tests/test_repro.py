"""repro: what it changes it puts back, and it says what this machine has."""

import platform
import subprocess
import sys
import warnings

import pytest
import torch

from qtorch_tutorial import repro


def test_a_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first = torch.rand(3, generator=repro.generator(5))
    again = torch.rand(3, generator=repro.generator(5))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def test_the_engine_is_put_back_even_after_an_error():
    before = torch.backends.quantized.engine
    other = next(
        e
        for e in torch.backends.quantized.supported_engines
        if e not in (before, "none")
    )
    seen = []

    def fail_inside():
        with repro.engine(other):
            seen.append(torch.backends.quantized.engine)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert seen == [other]
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("name", ["tpu", "none", ""])
def test_an_unsupported_engine_is_refused_with_the_supported_ones(name):
    with (
        pytest.raises(ValueError, match=r"not supported here; supported are .*x86"),
        repro.engine(name),
    ):
        pass


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with repro.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_quiet_silences_torchs_announcements_and_nothing_else():
    import torch.ao.quantization as tq

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with repro.quiet():
            tq.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(2, 2)))
            tq.get_default_qconfig("x86").activation()
            warnings.warn("something else", UserWarning, stacklevel=1)
        tq.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    messages = [str(w.message) for w in caught]
    assert messages[0] == "something else"
    assert messages[1].startswith("torch.ao.quantization is deprecated")


def test_silence_lasts():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "from qtorch_tutorial import repro; repro.silence_deprecations()\n"
        "import torch, torch.ao.quantization as tq\n"
        "tq.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(2, 2)))\n"
        "torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_probe_tells_what_other_sources_tell():
    here = repro.probe()
    assert here.python == platform.python_version()
    assert here.torch == torch.__version__
    assert here.engine in here.engines
    assert "none" not in here.engines
    level = torch.backends.cpu.get_cpu_capability()
    assert ("AVX2" in here.instructions) >= (level in ("AVX2", "AVX512"))
    assert ("AVX-512" in here.instructions) >= (level == "AVX512")


def test_without_torchs_own_reading_the_instructions_are_the_same(monkeypatch):
    told = repro.probe().instructions
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert repro.probe().instructions == told


@pytest.mark.parametrize("gone", ["torch.ao.no_such_module", "torch.no.such.module"])
def test_a_torch_without_torch_ao_is_named_with_the_remedy(gone, monkeypatch):
    monkeypatch.setattr(repro, "MODULES", (*repro.MODULES, gone))
    with pytest.raises(ImportError, match=rf"has no {gone}.*pip install 'torch=="):
        repro.probe()


def test_the_banner_names_versions_engine_and_processor(capsys):
    repro.banner()
    first, second, third = capsys.readouterr().out.splitlines()
    assert torch.__version__ in first
    assert torch.backends.quantized.engine in second
    assert ":" in third
