"""Train a network, float or fake-quantized: the one loop of the book."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qtorch_tutorial import repro
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
        Maps (batch, features) to class scores (batch, classes). Left in eval mode, its
        observers off, so that looking at it does not change it.
    split : Split
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
        Observers follow the data in so many first epochs; default: in all.
    batch_norm_epochs : int, optional
        The same for the running mean and variance of batch normalization.
    progress : bool
        Show a bar with loss and accuracy on the training part.

    Returns
    -------
    list of float
        The mean loss of each epoch.

    Raises
    ------
    ValueError
        If the model has no trainable parameter or a label is no class of it, before
        any step; if the loss is no finite number, at once, and the model holds the
        last weights whose loss was one.

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
    own = parameters[0].dtype
    dtype = own if _knows_no_float64(model) else torch.float64
    model.to(dtype).train()
    stepper = _Stepper(model, optimizer(parameters, lr=lr), batch_size)
    x, y = split.train_x.to(dtype), split.train_y
    losses = []
    try:
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
        _follow_data(model.to(own).eval(), False)
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

    def stop(self, why: str) -> None:
        for tensor, good in zip(self.state(), self.good, strict=True):
            tensor.data = good
        raise ValueError(
            f"{why} at step {self.steps}: lower lr or look at the data; the model "
            "holds the last weights that gave a finite loss"
        )

    def epoch(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Go once over the data, already shuffled; return mean loss and accuracy."""
        total, right = 0.0, 0
        batches = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        for batch_x, batch_y in batches:
            self.steps += 1
            scores = self.model(batch_x)
            _check_labels(y, scores.shape[1])
            loss = nn.functional.cross_entropy(scores, batch_y)
            if not torch.isfinite(loss):
                self.stop(f"the loss is {loss.item()}")
            self.keep()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch_x)
            right += int((scores.argmax(1) == batch_y).sum())
        return total / len(x), right / len(x)

    def check_last_step(self, dtype: torch.dtype) -> None:
        """No loss has looked at the weights that the last step made."""
        if not all(torch.isfinite(p.to(dtype)).all() for p in self.trained()):
            self.stop("the weights are no finite numbers")


def _check_labels(y: Tensor, classes: int) -> None:
    """Refuse a label that is no class; cross-entropy would skip a -100 silently."""
    low, high = int(y.min()), int(y.max())
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"labels must be in 0..{classes - 1}, one for each score of the model; "
            f"they are in {low}..{high}"
        )


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


def _follow_batches(model: nn.Module, on: bool) -> None:
    """Let batch normalization update its running statistics, or freeze them."""
    for module in model.modules():
        # Also inside a LinearBn1d, which torch's function freeze_bn_stats overlooks.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(on)
