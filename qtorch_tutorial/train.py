"""Train a network, float or fake-quantized: the one loop of the book."""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qtorch_tutorial import models, repro
from qtorch_tutorial.data import Split


def fit(  # noqa: PLR0913 (a keyword for each option)
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float,
    rng: torch.Generator,
    batch_size: int = 64,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    observe_epochs: int | None = None,
    batch_norm_epochs: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Train ``model`` in place on ``split.train_x`` with cross-entropy.

    The arithmetic is float64, on one thread; at the end the parameters are rounded
    once, to their own dtype. Sums then differ so little between processors that the
    trained float32 model is practically the same everywhere. A model with
    fake-quantized or quantized modules stays in its own dtype: torch's kernels for
    them know no float64. It is the same each time on one machine, not on all.

    Parameters
    ----------
    model : nn.Module
        On the CPU. Maps (batch, features) to class scores (batch, classes). Left in
        eval mode, its observers off, so that looking at it does not change it.
    split : Split
        Labels are integers, 0 to classes - 1.
    epochs : int
        Passes over the training part.
    lr : float
        Learning rate.
    rng : torch.Generator
        Shuffles the training part anew for each epoch.
    batch_size : int
    optimizer : callable
        ``optimizer(parameters, lr=lr)``; it is given only what ``requires_grad``.
    observe_epochs : int, optional
        Observers follow weights and data in so many first epochs; default: in all.
        After that the grids stand still. 0 needs a model that has been calibrated.
    batch_norm_epochs : int, optional
        The same for the running mean and variance of batch normalization; what
        ``freeze_bn_stats`` of a ``LinearBn1d`` has frozen stays frozen.
    progress : bool
        Show a bar with loss and accuracy on the training part.

    Returns
    -------
    list of float
        The mean loss of each epoch.

    Raises
    ------
    ValueError
        Before any step, and all values are as before: if no parameter can be trained,
        if the training part is empty or does not fit it, if a label is no class, if a
        batch norm would see one row only. If the loss is no finite number: at once,
        and the model holds the last weights whose loss was one.

    Examples
    --------
    >>> x = torch.tensor([[1.0], [-1.0]]).repeat(32, 1)
    >>> y = (x[:, 0] > 0).long()
    >>> model = nn.Linear(1, 2)
    >>> rng = torch.Generator().manual_seed(0)
    >>> losses = fit(
    ...     model, Split(x, y, x, y), epochs=50, lr=0.1, rng=rng, progress=False
    ... )
    >>> losses[-1] < 0.1, (model(x).argmax(1) == y).all().item()
    (True, True)
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter: nothing can be fitted")
    _check_split(split, batch_size)
    if batch_norm_epochs != 0:
        _check_last_batch(model, len(split.train_x), batch_size)
    if observe_epochs == 0 and (unseen := models.uncalibrated(model)):
        raise ValueError(f"observe_epochs=0, but {unseen[0]!r} has never seen data")
    tensors = (*model.parameters(), *model.buffers())
    own = {tensor: tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    dtype = parameters[0].dtype if _knows_no_float64(model) else torch.float64
    losses = []
    try:
        _cast(dict.fromkeys(own, dtype))
        stepper = _Stepper(model, optimizer(parameters, lr=lr), batch_size)
        x, y = split.train_x.to(dtype), split.train_y.long()
        # One thread: a sum does not depend on how many cores the machine has, and the
        # small batches do not wait for threads that find no free core.
        with repro.threads(1):
            for epoch in (bar := tqdm(range(epochs), "fit", disable=not progress)):
                _follow_data(model, _lasts(observe_epochs, epoch))
                _follow_batches(model, _lasts(batch_norm_epochs, epoch))
                order = torch.randperm(len(x), generator=rng)
                loss, accuracy = stepper.epoch(x[order], y[order])
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")
            stepper.check_last_step(own)
    finally:
        _cast(own)
        _follow_data(model.eval(), False)
    return losses


class _Stepper:
    """Takes the steps, and keeps the weights of the last one whose loss was finite."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int
    ) -> None:
        self.model, self.optimizer, self.batch_size = model, optimizer, batch_size
        self.steps = 0
        self.keep()

    def trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state(self) -> list[Tensor]:
        """All that a step may change."""
        return [*self.trained(), *self.model.buffers()]

    def keep(self) -> None:
        self.good = [tensor.detach().clone() for tensor in self.state()]

    def stop(self, why: str) -> NoReturn:
        for tensor, good in zip(self.state(), self.good, strict=True):
            tensor.data = good
        raise ValueError(why)

    def stop_at_step(self, what: str) -> NoReturn:
        self.stop(
            f"{what} at step {self.steps}: lower lr or look at the data; the model "
            "holds the last weights that gave a finite loss"
        )

    def epoch(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Go once over the data, already shuffled; return mean loss and accuracy."""
        total, right = 0.0, 0
        batches = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        for batch_x, batch_y in batches:
            self.steps += 1
            scores = self.model(batch_x)
            if self.steps == 1 and (fault := _misfit(scores, y)):
                self.stop(fault)
            loss = nn.functional.cross_entropy(scores, batch_y)
            if not torch.isfinite(loss):
                self.stop_at_step(f"the loss is {loss.item()}")
            self.keep()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch_x)
            right += int((scores.argmax(1) == batch_y).sum())
        return total / len(x), right / len(x)

    def check_last_step(self, dtypes: dict[Tensor, torch.dtype]) -> None:
        """No loss has looked at the weights that the last step made."""
        if not all(torch.isfinite(p.to(dtypes[p])).all() for p in self.trained()):
            self.stop_at_step("the weights are no finite numbers")


def _check_split(split: Split, batch_size: int) -> None:
    """Refuse data that no step could use."""
    x, y = split.train_x, split.train_y
    if not len(x) or batch_size < 1:
        raise ValueError(f"{len(x)} rows in batches of {batch_size}: nothing to fit on")
    if y.shape != (len(x),) or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            f"train_y needs shape ({len(x)},) and integers, a class for each row of "
            f"train_x; it has {tuple(y.shape)} and {y.dtype}"
        )


def _check_last_batch(model: nn.Module, rows: int, batch_size: int) -> None:
    """Refuse a batch of one row: a batch norm that follows its batches needs two."""
    if _batch_norms(model) and (batch_size == 1 or rows % batch_size == 1):
        raise ValueError(
            f"{rows} rows in batches of {batch_size} leave a batch of one, and a batch "
            "norm needs two: change batch_size, or freeze it by batch_norm_epochs=0"
        )


def _misfit(scores: Tensor, y: Tensor) -> str:
    """Say why labels do not fit the scores; cross-entropy would skip a -100."""
    low, high = int(y.min()), int(y.max())
    if scores.ndim != 2:
        return f"the model gives {tuple(scores.shape)}, not (batch, classes)"
    if not 0 <= low <= high < scores.shape[1]:
        return (
            f"labels must be in 0..{scores.shape[1] - 1}, one for each score of the "
            f"model; they are in {low}..{high}"
        )
    return ""


def _cast(dtypes: dict[Tensor, torch.dtype]) -> None:
    """Give each tensor its dtype, in place."""
    for tensor, dtype in dtypes.items():
        tensor.data = tensor.data.to(dtype)


def _knows_no_float64(model: nn.Module) -> bool:
    """Whether a module inside computes with torch's quantized or fake-quant kernels."""
    # By attribute: float models can be fitted where torch.ao has gone.
    marks = ("fake_quant_enabled", "_packed_params")
    return any(hasattr(m, mark) for m in model.modules() for mark in marks)


def _lasts(epochs: int | None, epoch: int) -> bool:
    return epochs is None or epoch < epochs


def _follow_data(model: nn.Module, on: bool) -> None:
    """Switch all observers of fake quantization on or off."""
    for module in model.modules():
        if hasattr(module, "observer_enabled"):
            module.enable_observer(on)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    """All of them, also inside a LinearBn1d, which torch's function overlooks."""
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind)]


def _follow_batches(model: nn.Module, on: bool) -> None:
    """Train, with running statistics that follow the batches or stand still."""
    model.train()
    for module in () if on else _batch_norms(model):
        module.eval()
