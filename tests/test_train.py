"""train: it learns, it repeats, and it stops when there is nothing to learn."""

import copy

import pytest
import torch
from torch import nn

from qtorch_tutorial import data, measure, models, repro, train


def fitted(seed=0, **kwargs):
    rng = repro.generator(seed)
    split = data.digits()
    split = data.Split(
        split.train_x[:600], split.train_y[:600], split.test_x, split.test_y
    )
    network = models.make_tale_network((784, 16, 10), rng=rng)
    options = {"epochs": 3, "lr": 3e-3, "rng": rng, "progress": False} | kwargs
    return network, train.fit(network, split, **options), split


def test_the_digits_are_learned():
    network, losses, split = fitted(epochs=8)
    assert losses[-1] < losses[0] / 3
    assert measure.accuracy(network, split.test_x, split.test_y) > 0.75


def test_the_same_seed_gives_the_same_model():
    one, two, other = fitted()[0], fitted()[0], fitted(seed=1)[0]
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_the_model_keeps_its_dtype_and_ends_in_eval_mode():
    network, _, _ = fitted(epochs=1)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training


def test_the_losses_are_those_of_a_loop_written_out(rng):
    # One batch per epoch, so that Adam can be followed by hand.
    x = torch.rand(8, 3, generator=rng)
    split = data.Split(x, torch.arange(8) % 2, x, torch.arange(8) % 2)
    model = nn.Linear(3, 2)
    by_hand = copy.deepcopy(model).double()
    losses = train.fit(
        model, split, epochs=2, lr=0.1, rng=rng, batch_size=8, progress=False
    )
    expected, m, v = [], {}, {}
    for step in (1, 2):
        by_hand.zero_grad()
        scores = by_hand(x.double())
        picked = scores.log_softmax(1)[range(8), split.train_y]
        (-picked.mean()).backward()
        expected.append(-picked.mean().item())
        for p in by_hand.parameters():
            m[p] = 0.9 * m.get(p, 0) + 0.1 * p.grad
            v[p] = 0.999 * v.get(p, 0) + 0.001 * p.grad**2
            root = (v[p] / (1 - 0.999**step)).sqrt() + 1e-8
            p.data -= 0.1 * m[p] / (1 - 0.9**step) / root
    assert losses == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(
        model.weight.double(), by_hand.weight, rtol=1e-6, atol=1e-7
    )


def test_every_epoch_sees_each_row_once_in_an_order_of_its_own(rng):
    x = torch.arange(20.0)[:, None]
    model, seen = nn.Linear(1, 2), []
    model.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[0][:, 0]))
    split = data.Split(x, torch.arange(20) % 2, x, torch.arange(20) % 2)
    train.fit(model, split, epochs=2, lr=0.01, rng=rng, batch_size=8, progress=False)
    first, second = seen[:20], seen[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_the_bar_is_shown_on_request(capsys):
    fitted(epochs=1, progress=True)
    assert "loss=" in capsys.readouterr().err
    fitted(epochs=1)
    assert capsys.readouterr().err == ""


def test_a_model_without_parameters_is_refused(rng):
    x = torch.rand(4, 2)
    split = data.Split(x, torch.zeros(4).long(), x, torch.zeros(4).long())
    with pytest.raises(ValueError, match="no trainable parameter"):
        train.fit(nn.ReLU(), split, epochs=1, lr=0.1, rng=rng)


def test_a_loss_that_is_no_number_stops_at_once():
    with pytest.raises(ValueError, match="the loss is nan"):
        fitted(lr=1e300)
