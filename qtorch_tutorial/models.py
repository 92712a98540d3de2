"""The float network of the tale, and what can be asked of a network's grids."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn


def make_tale_network(
    sizes: Sequence[int] = (784, 256, 256, 10),
    *,
    rng: torch.Generator,
    bias: bool = True,
) -> nn.Sequential:
    """Build Linear, ReLU, Linear, ..., Linear with weights drawn from ``rng``.

    Parameters
    ----------
    sizes : sequence of int
        Features at the input, between the layers, and at the output.
    rng : torch.Generator
        Draws weights and biases, uniform in +/- 1/sqrt(in_features), as PyTorch does.
    bias : bool
        Give each layer a bias.

    Returns
    -------
    nn.Sequential
        Maps float32 (batch, sizes[0]) to float32 (batch, sizes[-1]).

    Raises
    ------
    ValueError
        If there are fewer than two sizes.

    Examples
    --------
    >>> make_tale_network((4, 3, 2), rng=torch.Generator().manual_seed(0))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    if len(sizes) < 2:
        raise ValueError(f"a network needs at least 2 sizes, got {tuple(sizes)}")
    modules: list[nn.Module] = []
    for features, outputs in itertools.pairwise(sizes):
        # skip_init: nn.Linear would draw from the global generator.
        linear = nn.utils.skip_init(nn.Linear, features, outputs, bias=bias)
        for parameter in linear.parameters():
            nn.init.uniform_(
                parameter, -1 / math.sqrt(features), 1 / math.sqrt(features), rng
            )
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def uncalibrated(model: nn.Module) -> list[str]:
    """Names of the fake-quantization modules whose observers have never seen data.

    They are told by their attributes: the question can be asked of float models, and
    answered by an empty list, where ``torch.ao`` has gone.

    Examples
    --------
    >>> uncalibrated(nn.Linear(4, 2))
    []
    """
    names = []
    for name, module in model.named_modules():
        if hasattr(module, "fake_quant_enabled"):
            seen = getattr(module.activation_post_process, "min_val", torch.zeros(1))
            if not (seen.numel() and torch.isfinite(seen).all()):
                names.append(name)
    return names
