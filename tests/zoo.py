"""Float models of every nesting, to be converted."""

import itertools

import torch
from torch import nn


class Attributes(nn.Module):
    """Layers as attributes, ReLU as a function."""

    def __init__(self, bias):
        super().__init__()
        self.first = nn.Linear(12, 16, bias=bias)
        self.last = nn.Linear(16, 5, bias=bias)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Listed(nn.Module):
    """Layers in a module list."""

    def __init__(self, bias):
        super().__init__()
        sizes = (12, 16, 5)
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x):
        first, last = self.layers
        return last(torch.relu(first(x)))


class TwoHeads(nn.Module):
    """A body with BatchNorm1d and Dropout, and two outputs side by side."""

    def __init__(self, bias):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 16, bias=bias), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3)
        )
        self.left = nn.Linear(16, 2, bias=bias)
        self.right = nn.Linear(16, 3, bias=bias)

    def forward(self, x):
        x = self.body(x)
        return torch.cat([self.left(x), self.right(x)], dim=1)


class Twice(nn.Module):
    """One layer used twice, as an attribute and in a Sequential."""

    def __init__(self, bias):
        super().__init__()
        shared = nn.Linear(12, 12, bias=bias)
        self.body = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU())
        self.last = nn.Linear(12, 5, bias=bias)

    def forward(self, x):
        return self.last(self.body(x))


def sequential(bias):
    return nn.Sequential(
        nn.Linear(12, 16, bias=bias),
        nn.ReLU(),
        nn.Linear(16, 16, bias=bias),
        nn.ReLU(),
        nn.Linear(16, 5, bias=bias),
    )


def nested(bias):
    return nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(12, 16, bias=bias), nn.ReLU()),
        nn.Tanh(),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 5, bias=bias)),
    )


def bare(bias):
    return nn.Linear(12, 5, bias=bias)


MODELS = {
    "sequential": sequential,
    "attribute": Attributes,
    "module-list": Listed,
    "two-heads": TwoHeads,
    "twice": Twice,
    "nested": nested,
    "bare": bare,
}


def make(name, *, bias=True, seed=0):
    """A float model with drawn weights, and biases large enough to be missed."""
    rng = torch.Generator().manual_seed(seed)
    model = MODELS[name](bias)
    for parameter in model.parameters():
        with torch.no_grad():
            shape = parameter.shape
            drawn = torch.randn(shape, dtype=torch.float64, generator=rng).float()
            scale = 1.0 if parameter.ndim == 1 else shape[1] ** -0.5
            parameter.copy_(drawn * scale)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(torch.rand(16, generator=rng))
            module.running_var.copy_(torch.rand(16, generator=rng) + 0.5)
    return model
