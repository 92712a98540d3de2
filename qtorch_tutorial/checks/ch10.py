"""Checks of the exercises of chapter 10: mending broken lamps."""

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import Tensor, nn

from qtorch_tutorial import convert, models, repro
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 10.1: floats through a quantized layer, grids done by hand."""
    for seed, scale, zero_point in ((1, 0.02, 40), (2, 0.05, 0), (3, 0.011, 100)):
        rng = repro.generator(seed)
        flame = models.make_tale_network((6, 5), rng=rng)
        x = torch.rand(20, 6, generator=rng) - 0.5
        layer = convert.to_static(flame, calibration=x)[1]
        given = _lit(answer, layer, x, scale, zero_point)
        if given.shape != (20, 5):
            raise Wrong(f"return shape (20, 5), not {tuple(given.shape)}")
        integers = (x / scale + zero_point).round().clamp(0, 255)
        right = _through(layer, integers, scale, zero_point)
        if torch.allclose(given, right, atol=layer.scale / 10):
            continue
        if torch.equal(given, (right / layer.scale).round() + layer.zero_point):
            raise Wrong("these are the output's integers; give what they stand for")
        own = (x / layer.scale + layer.zero_point).round().clamp(0, 255)
        if torch.allclose(given, _through(layer, own, layer.scale, layer.zero_point)):
            raise Wrong("layer.scale is the output's grid; x has the one given")
        steps = (given / layer.scale + layer.zero_point).double()
        if (steps - steps.round()).abs().max() > 0.01:
            raise Wrong("your outputs lie between the steps of the layer's grid")
        raise Wrong("the outputs are not the layer's: look at the grid of x")


def _lit(
    answer: object, layer: nn.Module, x: Tensor, scale: float, zero_point: int
) -> Tensor:
    """Call the answer; a refusal of the layer is a mistake with a name."""
    try:
        given = answer_of(answer, layer, x, scale, zero_point)
    except RuntimeError as error:
        if "arguments from the 'CPU' backend" in str(error):
            raise Wrong("the layer refuses floats: quantize x first") from error
        if "QInt8" in str(error):
            raise Wrong("activations are quint8, weights are qint8") from error
        raise
    if not isinstance(given, Tensor):
        raise Wrong(f"return a tensor, not {type(given).__name__}")
    if given.is_quantized:
        raise Wrong("your output is still quantized: dequantize it")
    if given.dtype != torch.float32:
        raise Wrong(f"return float32, not {given.dtype}")
    return given


def _through(
    layer: nn.Module, integers: Tensor, scale: float, zero_point: int
) -> Tensor:
    """Run the kernel on integers of a grid; read its own integers as floats."""
    x_q = torch._make_per_tensor_quantized_tensor(
        integers.to(torch.uint8), scale, zero_point
    )
    return (layer(x_q).int_repr().float() - layer.zero_point) * layer.scale


def ex2(answer: object) -> None:
    """Check exercise 10.2: the names of layers that saw no calibration."""
    cases = (
        ("a dynamic layer has these numbers too and is healthy", 0),
        ("LinearReLU is a static layer, too", 1),
        ("scale 1 with another zero point was calibrated", 2),
        ("zero point 0 with another scale was calibrated", 3),
        ("only nnq.Linear and LinearReLU count", 4),
        ("look into the modules inside modules", 5),
    )
    for lesson, case in cases:
        model, right = _patients(case)
        given = answer_of(answer, model)
        if not isinstance(given, list):
            raise Wrong(f"return a list of names, not {type(given).__name__}")
        if not all(isinstance(name, str) for name in given):
            raise Wrong("the list holds names (str), as in named_modules()")
        if sorted(given) == sorted(right) != given:
            raise Wrong("keep the order of named_modules()")
        if given != right:
            raise Wrong(f"{given} instead of {right}: {lesson}")


def _patients(case: int) -> tuple[nn.Module, list[str]]:
    """Make a model with one trap, and name its layers that were never calibrated."""
    traps = (
        nnqd.Linear(4, 4),
        nniq.LinearReLU(4, 4),
        _static(1.0, 7),
        _static(0.5, 0),
        nnq.Quantize(1.0, 0, torch.quint8),
        nn.Sequential(nn.Identity(), _static(1.0, 0)),
    )
    with repro.quiet():
        healthy, sick = _static(0.1, 30), _static(1.0, 0)
    model = nn.Sequential(healthy, sick, traps[case], nn.ReLU(), nn.Linear(4, 2))
    return model, {1: ["1", "2"], 5: ["1", "2.1"]}.get(case, ["1"])


def _static(scale: float, zero_point: int) -> nnq.Linear:
    """Make a static layer whose output has this grid."""
    layer = nnq.Linear(4, 4)
    layer.scale, layer.zero_point = scale, zero_point
    return layer


def ex3(answer: object) -> None:
    """Check exercise 10.3: the share of weights that are float, on counted models."""
    lone, half = nn.Linear(30, 10), nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 20))
    seven_eighths = nn.Sequential(nn.Linear(7, 10), nn.Linear(10, 1))
    cases = (
        ("a float model has a share of 1", half, 1.0),
        ("weight() unpacks what is packed", convert.to_dynamic(half), 0.0),
        (
            "count numbers, not layers, and no biases",
            convert.to_dynamic(seven_eighths, keep_float=["0"]),
            70 / 80,
        ),
        (
            "LinearReLU and static layers are packed, too",
            nn.Sequential(nniq.LinearReLU(4, 5), nnq.Linear(5, 20), lone),
            300 / 420,
        ),
        (
            "a bare parameter of attention is a weight as well",
            nn.Sequential(nn.MultiheadAttention(8, 2), nnqd.Linear(8, 32)),
            256 / 512,
        ),
        ("LayerNorm has one dimension", nn.Sequential(nn.LayerNorm(9), lone), 1.0),
    )
    for lesson, model, right in cases:
        given = answer_of(answer, model)
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise Wrong(f"return a float, not {type(given).__name__}")
        if abs(given - 100 * right) < 1e-6 < right:
            raise Wrong("return a share from 0 to 1, not percent")
        if right != 0.5 and abs(given - (1 - right)) < 1e-6:
            raise Wrong("this is the share that is packed; the rest is still float")
        if abs(given - right) > 1e-6:
            raise Wrong(f"{given:.4g} instead of {right:.4g}: {lesson}")
