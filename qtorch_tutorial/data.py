"""Data to learn on: real digits that ship in the wheel, and Fashion-MNIST on request.

Nothing here needs the network but :func:`fashion_mnist`, which says so.
"""

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Split(NamedTuple):
    """A training and a test part.

    Attributes
    ----------
    train_x, test_x : float32 tensors, shape (n, features)
    train_y, test_y : tensors, shape (n,) of int64 classes, or (n, outputs) of floats
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits() -> Split:
    """Load 5,000 handwritten digits of MNIST: 4,000 to train on, 1,000 to test on.

    Returns
    -------
    Split
        Pixels in 0..1, one row of 784 for an image of 28 x 28; classes 0 to 9, in each
        part equally many of each.

    Examples
    --------
    >>> split = digits()
    >>> split.train_x.shape, split.test_y.bincount().unique()
    (torch.Size([4000, 784]), tensor([100]))
    """
    with (files("qtorch_tutorial") / "assets" / "digits.npz").open("rb") as file:
        stored = np.load(file)
        parts = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return Split(
        parts["train_x"].float() / 255,
        parts["train_y"].long(),
        parts["test_x"].float() / 255,
        parts["test_y"].long(),
    )


def fashion_mnist(root: str, *, download: bool = False) -> Split:
    """Load Fashion-MNIST through torchvision: 60,000 to train on, 10,000 to test on.

    Parameters
    ----------
    root : str
        The folder that holds, or will hold, torchvision's ``FashionMNIST`` folder.
    download : bool
        Fetch it from the network if it is not there.

    Returns
    -------
    Split
        As :func:`digits`.

    Raises
    ------
    RuntimeError
        If the data are not in ``root`` and ``download`` is False.
    """
    from torchvision.datasets import FashionMNIST  # late: slow to load, rarely used

    parts = []
    for train in (True, False):
        images = FashionMNIST(root, train=train, download=download)
        parts += [images.data.flatten(1).float() / 255, images.targets.long()]
    return Split(*parts)
