"""Train a network: the one loop of the book."""

import torch
from torch import nn
from tqdm import tqdm

from qtorch_tutorial import repro
from qtorch_tutorial.data import Split


def fit(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float,
    rng: torch.Generator,
    batch_size: int = 64,
    progress: bool = True,
) -> list[float]:
    """Train ``model`` in place on ``split.train_x`` with Adam and cross-entropy.

    The arithmetic is float64, on one thread; at the end the parameters are rounded
    once, to their own dtype. Sums then differ so little between processors that the
    trained float32 model is practically the same everywhere.

    Parameters
    ----------
    model : nn.Module
        Maps (batch, features) to class scores (batch, classes). Left in eval mode.
    split : Split
    epochs : int
        Passes over the training part.
    lr : float
        Learning rate of Adam.
    rng : torch.Generator
        Shuffles the training part anew for each epoch.
    batch_size : int
    progress : bool
        Show a bar with the loss.

    Returns
    -------
    list of float
        The mean loss of each epoch.

    Raises
    ------
    ValueError
        If the model has no trainable parameter, or the loss is no finite number.

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
    dtype = parameters[0].dtype
    model.double().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, y = split.train_x.double(), split.train_y
    losses = []
    try:
        # One thread: a sum does not depend on how many cores the machine has, and the
        # small batches do not wait for threads that find no free core.
        with repro.threads(1):
            for _ in (bar := tqdm(range(epochs), desc="fit", disable=not progress)):
                order = torch.randperm(len(x), generator=rng)
                losses.append(_epoch(model, optimizer, x[order], y[order], batch_size))
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
    finally:
        model.to(dtype).eval()
    return losses


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    batch_size: int,
) -> float:
    """Go once over the data, already shuffled; return the mean loss."""
    total = 0.0
    for batch_x, batch_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        loss = nn.functional.cross_entropy(model(batch_x), batch_y)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()}: lower lr or look at the data")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch_x)
    return total / len(x)
