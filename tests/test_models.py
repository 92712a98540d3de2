"""models: the network of the tale, drawn from its own generator."""

import math

import pytest
import torch
from torch import nn

from qtorch_tutorial import models, repro


def test_linear_and_relu_take_turns_and_linear_ends(rng):
    network = models.make_tale_network((5, 4, 3, 2), rng=rng)
    kinds = [type(m) for m in network]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert network(torch.rand(7, 5)).shape == (7, 2)


def test_a_seed_fixes_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one = models.make_tale_network((5, 4), rng=repro.generator(3))
    two = models.make_tale_network((5, 4), rng=repro.generator(3))
    other = models.make_tale_network((5, 4), rng=repro.generator(4))
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_fill_pytorchs_interval(rng):
    layer = models.make_tale_network((100, 200), rng=rng)[0]
    bound = 1 / math.sqrt(100)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.9 * bound
        assert abs(parameter.mean()) < 0.2 * bound


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_there_on_request(bias, rng):
    network = models.make_tale_network((3, 3, 3), rng=rng, bias=bias)
    assert all((m.bias is not None) == bias for m in network if type(m) is nn.Linear)


def test_one_size_is_refused(rng):
    with pytest.raises(ValueError, match=r"at least 2 sizes, got \(3,\)"):
        models.make_tale_network((3,), rng=rng)
