"""train: it learns, it repeats, and it stops when there is nothing to learn."""

import copy

import pytest
import torch
from torch import nn

from qtorch_tutorial import convert, data, measure, models, repro, train


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
    shown = capsys.readouterr().err
    assert "loss=" in shown
    assert "accuracy=" in shown
    fitted(epochs=1)
    assert capsys.readouterr().err == ""


def test_the_accuracy_shown_is_that_of_the_training_part(capsys):
    x = torch.tensor([[1.0], [-1.0]]).repeat(8, 1)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-9.0], [9.0]]))
    flipped = torch.cat([y[:12], 1 - y[12:]])  # 12 of 16 as the model says
    split = data.Split(x, flipped, x, y)
    train.fit(model, split, epochs=1, lr=1e-6, rng=repro.generator(0), batch_size=16)
    assert "accuracy=75.0%" in capsys.readouterr().err


def test_a_model_without_parameters_is_refused(rng):
    x = torch.rand(4, 2)
    split = data.Split(x, torch.zeros(4).long(), x, torch.zeros(4).long())
    with pytest.raises(ValueError, match="no trainable parameter"):
        train.fit(nn.ReLU(), split, epochs=1, lr=0.1, rng=rng)


def small(rng, rows=40):
    """A task that a small model learns, and a model with batch normalization."""
    x = torch.randn(rows, 6, generator=rng)
    split = data.Split(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long())
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    )
    return model, split


def fit_small(model, split, **kwargs):
    options = {"epochs": 2, "lr": 1e-2, "batch_size": 10, "progress": False} | kwargs
    return train.fit(model, split, rng=repro.generator(0), **options)


def test_only_what_is_thawed_moves_and_only_that_reaches_the_optimizer(rng):
    model, split = small(rng)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    given = []

    def sgd(parameters, lr):
        given.append((list(parameters), lr))
        return torch.optim.SGD(given[-1][0], lr=lr)

    fit_small(model, split, optimizer=sgd, lr=0.125)
    ((parameters, lr),) = given
    assert lr == 0.125
    assert {id(p) for p in parameters} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert not {"0.weight", "0.bias"} & moved
    assert {"1.weight", "1.bias", "3.weight", "3.bias"} <= moved


@pytest.mark.parametrize("fuse", [False, True], ids=["qat", "qat-fused"])
def test_a_fake_quantized_model_learns_and_repeats(fuse):
    network, _, split = fitted(epochs=6)
    runs = []
    for _ in range(2):
        model = convert.to_qat(network, qconfig=convert.low_bit_qconfig(3), fuse=fuse)
        losses = train.fit(
            model, split, epochs=4, lr=1e-3, rng=repro.generator(1), progress=False
        )
        runs.append(model.state_dict())
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(runs[0][k], v) for k, v in runs[1].items())


def observed(model):
    """What the observer of the input has seen: it does not depend on any weight."""
    observer = model[0].activation_post_process.activation_post_process
    return observer.min_val.item(), observer.max_val.item()


def test_observers_follow_the_data_in_the_first_epochs_only(rng):
    model, split = small(rng)
    seen = {}
    for epochs, observe in ((1, None), (3, 1), (3, None), (3, 0)):
        made = convert.to_qat(model)
        made(split.train_x)  # or a grid of 0 epochs would never have seen data
        start = observed(made)
        fit_small(made, split, epochs=epochs, observe_epochs=observe)
        seen[epochs, observe] = observed(made)
    assert seen[3, 0] == start
    assert seen[3, 1] == seen[1, None] != start
    assert seen[3, None] != seen[3, 1]


def test_looking_at_a_fitted_model_does_not_change_it(rng):
    model, split = small(rng)
    made = convert.to_qat(model, fuse=True)
    fit_small(made, split)
    before = copy.deepcopy(made.state_dict())
    with torch.no_grad():
        made(100 * split.test_x)
    assert all(torch.equal(made.state_dict()[k], v) for k, v in before.items())
    assert not any(m.training for m in made.modules())


@pytest.mark.parametrize("form", ["float", "qat", "qat-fused"])
def test_batch_norm_follows_the_batches_in_the_first_epochs_only(form, rng):
    model, split = small(rng)
    seen = {}
    for epochs, follow in ((1, None), (3, 1), (3, None), (3, 0)):
        made = copy.deepcopy(model)
        if form != "float":
            made = convert.to_qat(model, fuse=form == "qat-fused")
        # Without a step the mean depends on the batches alone.
        fit_small(made, split, epochs=epochs, batch_norm_epochs=follow, lr=0.0)
        (norm,) = (m for m in made.modules() if isinstance(m, nn.BatchNorm1d))
        seen[epochs, follow] = norm.running_mean
    assert torch.equal(seen[3, 0], torch.zeros(8))
    assert torch.equal(seen[3, 1], seen[1, None])
    assert not torch.equal(seen[3, None], seen[3, 1])
    assert not torch.equal(seen[3, 1], seen[3, 0])


def test_a_frozen_batch_norm_uses_its_running_statistics(rng):
    model, split = small(rng)
    model[1].running_mean += 1.0
    made = copy.deepcopy(model)
    (loss,) = fit_small(
        made, split, epochs=1, lr=0.0, batch_size=40, batch_norm_epochs=0
    )
    scores = model.eval()(split.train_x)
    expected = nn.functional.cross_entropy(scores, split.train_y)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


# --- what is refused -------------------------------------------------------------


def unchanged(model, before):
    """Whether all but the switch that ``fit`` leaves off is bit for bit as before."""
    after = model.state_dict()
    return all(
        torch.equal(after[name], value)
        for name, value in before.items()
        if not name.endswith("observer_enabled")
    )


@pytest.mark.parametrize("form", ["float", "qat", "qat-fused"])
@pytest.mark.parametrize("label", [-100, -1, 2])
def test_a_label_that_is_no_class_is_refused_before_any_step(label, form, rng):
    model, split = small(rng)
    if form != "float":
        model = convert.to_qat(model, fuse=form == "qat-fused")
    before = copy.deepcopy(model.state_dict())
    split.train_y[-1] = label  # in whatever batch
    with pytest.raises(ValueError, match=rf"labels must be in 0\.\.1.*{label}"):
        fit_small(model, split)
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "0 rows in batches of 10"),
        (lambda x, y: (x, y[:-1]), r"needs shape \(40,\) and integers.* has \(39,\)"),
        (lambda x, y: (x, y.float()), "integers.* torch.float32"),
        (lambda x, y: (x, y > 0), "integers.* torch.bool"),
        (lambda x, y: (x, torch.eye(2)[y]), r"has \(40, 2\)"),
        (
            lambda x, y: (x[:31], y[:31]),
            "31 rows in batches of 10 leave a batch of one",
        ),
    ],
    ids=["empty", "too-few-labels", "float", "bool", "one-hot", "one-row"],
)
def test_data_that_fit_no_step_are_refused_before_any(change, message, rng):
    model, split = small(rng)
    before = copy.deepcopy(model.state_dict())
    x, y = change(split.train_x, split.train_y)
    with pytest.raises(ValueError, match=message):
        fit_small(model, data.Split(x, y, x, y))
    assert unchanged(model, before)


def test_a_batch_of_one_row_is_no_fault_if_no_batch_norm_follows_it(rng):
    model, split = small(rng)
    part = data.Split(*(tensor[:31] for tensor in split))
    fit_small(model, part, batch_norm_epochs=0)
    fit_small(nn.Sequential(nn.Linear(6, 2)), part)


def test_integers_of_any_width_are_labels(rng):
    model, split = small(rng)
    twin = copy.deepcopy(model)
    fit_small(model, split)
    fit_small(twin, split._replace(train_y=split.train_y.to(torch.uint8)))
    assert torch.equal(model[0].weight, twin[0].weight)


def test_scores_of_another_shape_are_refused(rng):
    _, split = small(rng)
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"gives \(10,\), not \(batch, classes\)"):
        fit_small(model, split)


def test_grids_that_stand_still_must_have_seen_data(rng):
    model, split = small(rng)
    made = convert.to_qat(model, qconfig=convert.low_bit_qconfig(4))
    with pytest.raises(ValueError, match=r"'0_quant\..* has never seen data"):
        fit_small(made, split, observe_epochs=0)


def test_a_failure_before_the_first_step_leaves_dtype_and_mode(rng):
    model, split = small(rng)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        fit_small(model, split, lr=-1.0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_each_tensor_keeps_its_own_dtype(rng):
    x = torch.randn(20, 6, generator=rng)
    split = data.Split(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long())
    model = nn.Sequential(nn.Linear(6, 4).bfloat16(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model.register_buffer("large", torch.tensor(1e30))
    fit_small(model, split)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[1].weight.dtype == torch.float32
    assert model.large == torch.tensor(1e30)


def test_it_computes_on_one_thread(rng):
    model, split = small(rng)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    with repro.threads(2):
        fit_small(model, split)
        assert torch.get_num_threads() == 2
    assert set(seen) == {1}


def test_a_batch_norm_frozen_by_its_own_method_stays_frozen(rng):
    model, split = small(rng)
    made = convert.to_qat(model, fuse=True)
    (layer,) = (m for m in made.modules() if hasattr(m, "freeze_bn_stats"))
    layer.freeze_bn_stats()
    fit_small(made, split)
    assert torch.equal(layer.bn.running_mean, torch.zeros(8))


@pytest.mark.parametrize("bits", [8, 3])
def test_nan_reaches_no_weight_and_no_grid(bits, rng):
    model, split = small(rng)
    made = convert.to_qat(model, qconfig=convert.low_bit_qconfig(bits), fuse=True)
    split.train_x[5] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan at step"):
        fit_small(made, split)
    for name, tensor in made.state_dict().items():
        assert not tensor.isnan().any(), name


def test_a_loss_that_is_no_number_stops_and_gives_the_last_good_weights_back(rng):
    # One row a step; the order is the generator's, so the step of the bad row is known.
    x = torch.randn(9, 3, generator=rng)
    y = torch.arange(9) % 2
    x[5] = float("nan")
    model = nn.Linear(3, 2)
    by_hand = copy.deepcopy(model).double()
    order = torch.randperm(9, generator=repro.generator(0)).tolist()
    step = order.index(5) + 1
    assert step > 2  # or this test would show little
    with pytest.raises(ValueError, match=f"the loss is nan at step {step}: "):
        fit_small(model, data.Split(x, y, x, y), batch_size=1)
    # The last finite loss was the step's before; its weights had step - 2 updates.
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-2)
    for row in order[: step - 2]:
        optimizer.zero_grad()
        scores = by_hand(x[[row]].double())
        nn.functional.cross_entropy(scores, y[[row]]).backward()
        optimizer.step()
    assert torch.equal(model.weight, by_hand.weight.float())
    assert not model.training


def test_a_bad_first_row_leaves_everything_as_it_was(rng):
    model, split = small(rng)
    before = copy.deepcopy(model.state_dict())
    split.train_x[:] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        fit_small(model, split)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_weights_that_the_very_last_step_spoils_are_given_back(rng):
    model, split = small(rng)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="the weights are no finite numbers at step 1"):
        fit_small(model, split, epochs=1, batch_size=40, lr=1e300)
    assert torch.equal(model[0].weight, before)


def test_a_learning_rate_beyond_all_bounds_is_seen_at_the_second_step():
    with pytest.raises(ValueError, match="the loss is nan at step 2"):
        fitted(lr=1e300)
