"""Checks of chapter 13, Fusing modules: fold, predict, distrust, mend."""

import copy

import torch
import torch.ao.nn.intrinsic as nni
import torch.ao.quantization as tq
from torch import Tensor, nn

from qtorch_tutorial import repro
from qtorch_tutorial.checks import Wrong, answer_of


def ex1(answer: object) -> None:
    """Check exercise 13.1: the folded layer, against running the two modules."""
    for bias, affine, eps in (
        (True, True, 0.2),
        (False, True, 0.2),
        (True, False, 0.2),
    ):
        linear, bn = _linear(7, 5, bias=bias), _batch_norm(5, affine=affine, eps=eps)
        before = _numbers(nn.ModuleList([linear, bn]))
        try:
            given = answer_of(answer, linear, bn)
        except (TypeError, AttributeError):
            if bias and affine:
                raise
            none = "bn has no weight and bias" if bias else "linear has no bias"
            raise Wrong(f"{none} here: they are None, and yours fails") from None
        if not torch.equal(_numbers(nn.ModuleList([linear, bn])), before):
            raise Wrong("you changed linear or bn itself: make a new layer")
        if given is linear or type(given) is not nn.Linear:
            raise Wrong(f"return a new nn.Linear, not {_named(given, linear)}")
        if given.bias is None:
            raise Wrong("the shift is lost: the new layer needs a bias in every case")
        x = torch.randn(64, 7, generator=repro.generator(3))
        with torch.no_grad():
            right = bn(linear(x))
            if given.weight.shape != linear.weight.shape:
                raise Wrong("mind the order: in_features first, then out_features")
            if not _close(given(x), right):
                raise Wrong(_fold_mistake(given, linear, bn))


def _named(given: object, linear: nn.Linear) -> str:
    return "linear itself" if given is linear else f"a {type(given).__name__}"


def _fold_mistake(given: nn.Linear, linear: nn.Linear, bn: nn.BatchNorm1d) -> str:
    """Say which mistake gives this weight or this bias."""
    gamma = bn.weight if bn.affine else torch.ones(bn.num_features)
    beta = bn.bias if bn.affine else torch.zeros(bn.num_features)
    b = torch.zeros(bn.num_features) if linear.bias is None else linear.bias
    mean, var = bn.running_mean, bn.running_var
    factor = gamma / (var + bn.eps).sqrt()
    wrong_factors = (
        (gamma / var.sqrt(), "eps is missing: it is added to the variance"),
        (gamma / (var.sqrt() + bn.eps), "eps belongs under the root, to the variance"),
        (gamma / (var + bn.eps), "divide by the deviation: the variance needs a root"),
        (1 / (var + bn.eps).sqrt(), "the factor also contains bn's weight, gamma"),
        (gamma * 0 + 1, "the weight is still linear's: multiply its rows too"),
    )
    if not _close(given.weight, factor[:, None] * linear.weight):
        for value, why in wrong_factors:
            if _close(given.weight, value[:, None] * linear.weight):
                return why
        return "row j of the weight is multiplied by the factor of output j"
    wrong_biases = (
        (b, "the bias is still linear's: it is shifted and multiplied, too"),
        (b * factor + beta, "the running mean is not subtracted"),
        (b - mean * factor + beta, "linear's bias passes through bn: multiply it, too"),
        ((b - mean) * factor, "bn's own bias, beta, is not added"),
        ((b - mean + beta) * factor, "beta is added last: the factor leaves it alone"),
        ((b + mean) * factor + beta, "subtract the running mean, do not add it"),
    )
    for value, why in wrong_biases:
        if _close(given.bias, value):
            return why
    return "the weight is right and the bias is not: b' = factor * (b - mean) + beta"


def ex2(answer: object) -> None:
    """Check exercise 13.2: the types, against torch's own fuse_modules."""
    kinds = {"a": "Linear", "n": "BatchNorm1d", "r": "ReLU", "b": "Linear", "s": "ReLU"}
    lists = (
        ["a", "n"],
        ["b", "s"],
        ["a", "r"],
        ["b", "r"],
        ["a", "n", "r"],
        ["n", "a"],
        ["n", "r"],
        ["r", "b"],
        ["a"],
        ["a", "b"],
        ["a", "missing"],
    )
    for names in lists:
        right = _torch_says(kinds, names)
        given_kinds = dict(kinds)
        try:
            given = answer_of(answer, given_kinds, list(names))
        except ValueError:
            if right is None:
                continue
            raise Wrong(f"torch fuses {names}, and yours raises: {right}") from None
        except (AssertionError, LookupError) as error:
            if isinstance(error, Wrong):
                raise
            kind = type(error).__name__
            raise Wrong(f"for {names} raise a ValueError, not {kind}") from None
        if given_kinds != kinds:
            raise Wrong("you changed kinds itself: return a new dict")
        if right is None:
            raise Wrong(f"torch refuses {names}: raise a ValueError")
        if not isinstance(given, dict):
            raise Wrong(f"return a dict, not {type(given).__name__}")
        if given != right:
            raise Wrong(_kinds_mistake(names, given, right))


def _torch_says(kinds: dict[str, str], names: list[str]) -> dict[str, str] | None:
    """Ask torch for the types after fusing; None where it raises."""
    make = {
        "Linear": lambda: nn.Linear(3, 3),
        "BatchNorm1d": lambda: nn.BatchNorm1d(3),
        "ReLU": nn.ReLU,
    }
    with torch.random.fork_rng(devices=[]), repro.quiet():
        model = nn.ModuleDict({name: make[kind]() for name, kind in kinds.items()})
        try:
            tq.fuse_modules(model.eval(), names, inplace=True)
        except (AssertionError, AttributeError):
            return None
    return {name: type(module).__name__ for name, module in model.items()}


def _kinds_mistake(names: list[str], given: dict, right: dict) -> str:
    """Say which mistake gives these types."""
    first, last = names[0], names[-1]
    if set(given) < set(right):
        return f"fusing {names}: no name disappears, an Identity takes the place"
    if given.get(first) == "LinearBn1d":
        return "LinearBn1d is what fuse_modules_qat makes: in eval torch folds at once"
    if given.get(last) != "Identity":
        return f"fusing {names}: {last!r} has been absorbed and becomes an Identity"
    return f"fusing {names} gives {right}, not {given}"


def ex3(answer: object) -> None:
    """Check exercise 13.3: the lists found, on a model whose wrong ones are known."""
    model, x = _Crooked(), torch.randn(128, 6, generator=repro.generator(9))
    model.eval()
    cases = (
        ([["fc1", "bn1"], ["fc2", "relu2"]], []),
        ([["fc2", "bn2"], ["fc1", "bn1"]], [["fc2", "bn2"]]),
        (
            [["fc1", "relu"], ["fc1", "bn1"], ["fc2", "bn2"]],
            [["fc1", "relu"], ["fc2", "bn2"]],
        ),
        ([["fc3", "bn3"], ["fc2", "relu2"]], []),
        ([], []),
    )
    before = _numbers(model)
    with torch.no_grad(), repro.quiet():
        for lists, right in cases:
            given = answer_of(answer, model, copy.deepcopy(lists), x)
            if not torch.equal(_numbers(model), before) or model.names != _names(model):
                raise Wrong("model itself is fused now: leave it as it is")
            if not isinstance(given, list):
                raise Wrong(f"return a list of lists, not {type(given).__name__}")
            if given != right:
                raise Wrong(_lists_mistake(lists, given, right))


class _Crooked(nn.Module):
    """Runs its modules in another order than their names suggest."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (_linear(6, 6, seed=seed) for seed in (1, 2, 3))
        self.bn1, self.bn2, self.bn3 = (_batch_norm(6, seed=seed) for seed in (4, 5, 6))
        self.relu, self.relu2 = nn.ReLU(), nn.ReLU()
        self.names = _names(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.fc1(x)))
        x = self.bn2(self.relu2(self.fc2(x)))
        return 1000 * self.bn3(self.fc3(x))


def _names(model: nn.Module) -> list[str]:
    return [
        f"{name}: {type(module).__name__}" for name, module in model.named_modules()
    ]


def _lists_mistake(lists: list, given: list, right: list) -> str:
    """Say which mistake gives these lists."""
    if given == [names for names in lists if names not in right] and given != right:
        return f"these lists are the right ones; asked for are the wrong ones: {right}"
    if len(given) > len(right):
        extra = next((names for names in given if names not in right), given)
        return (
            f"{extra} alone changes only the last digits: compare with a bound, and "
            "fuse each list on the unfused model"
        )
    missed = next((names for names in right if names not in given), right)
    return f"{missed} changes the outputs, and your answer does not name it"


def ex4(answer: object) -> None:
    """Check exercise 13.4: the fuser, used by torch's fuse_modules."""
    kinds = (nn.Linear, nn.BatchNorm1d, nn.ReLU)
    model = nn.Sequential(_linear(6, 5), _batch_norm(5), nn.ReLU()).eval()
    config = {"additional_fuser_method_mapping": {kinds: _expecting_result(answer)}}
    x = torch.randn(64, 6, generator=repro.generator(9))

    def fused(is_qat: bool, model: nn.Module) -> nn.Module:
        fuse = tq.fuse_modules_qat if is_qat else tq.fuse_modules
        return fuse(model, ["0", "1", "2"], fuse_custom_config_dict=config)

    with torch.no_grad(), repro.quiet():
        made = fused(False, model)
        _check_fused(made[0])
        if not _close(made(x), model(x)):
            raise Wrong(_fuser_mistake(made(x), model, x))
        for is_qat, error in ((True, NotImplementedError), (False, AssertionError)):
            try:
                fused(is_qat, copy.deepcopy(model).train())
            except error:
                continue
            except Exception as other:
                what = f"yours raises {type(other).__name__}"
            else:
                what = "yours fuses"
            told = f"with is_qat={is_qat} in train mode, raise {error.__name__}: {what}"
            raise Wrong(told)


def _expecting_result(answer: object) -> object:
    """Wrap a fuser so that one that returns nothing is an answer that is missing."""
    return lambda *args: answer_of(answer, *args)


def _check_fused(made: object) -> None:
    """Say what is wrong with the module that the fuser made."""
    if type(made) is not nni.LinearReLU:
        raise Wrong(f"return an nni.LinearReLU, not a {type(made).__name__}")
    if type(made[0]) is not nn.Linear:
        raise Wrong(f"its first part is one nn.Linear, not a {type(made[0]).__name__}")


def _fuser_mistake(given: Tensor, model: nn.Sequential, x: Tensor) -> str:
    """Say which mistake gives this output."""
    if _close(given, model[2](model[0](x))):
        return "the batch norm is lost: fold it into the linear layer first"
    return "its output is not relu(bn(linear(x)))"


def _linear(
    features: int, outputs: int, *, bias: bool = True, seed: int = 131
) -> nn.Linear:
    """Draw a layer without touching the global generator."""
    rng = repro.generator(seed)
    linear = nn.utils.skip_init(nn.Linear, features, outputs, bias=bias)
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -1, 1, rng)
    return linear


def _batch_norm(
    features: int, *, affine: bool = True, eps: float = 1e-5, seed: int = 132
) -> nn.BatchNorm1d:
    """Draw a batch norm in eval mode, of which every part matters."""
    rng = repro.generator(seed)
    bn = nn.BatchNorm1d(features, eps=eps, affine=affine).eval()
    nn.init.uniform_(bn.running_mean, 0.5, 2, rng)
    nn.init.uniform_(bn.running_var, 0.3, 3, rng)
    if affine:
        nn.init.uniform_(bn.weight, -2, -0.5, rng)
        nn.init.uniform_(bn.bias, 0.5, 2, rng)
    return bn


def _numbers(model: nn.Module) -> Tensor:
    """All numbers of a model in one tensor, to see whether it was changed."""
    return torch.cat(
        [t.detach().double().flatten() for t in model.state_dict().values()]
    )


def _close(given: Tensor, right: Tensor) -> bool:
    """Whether two results differ in the last digits only."""
    if given.shape != right.shape:
        return False
    return bool((given - right).abs().max() <= 1e-4 * right.abs().max())
