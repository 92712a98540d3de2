"""data: real digits of the stated shape, and Fashion-MNIST as torchvision stores it."""

import pytest
import torch

from qtorch_tutorial import data


def test_the_digits_are_balanced_and_in_range():
    split = data.digits()
    assert split.train_x.shape == (4000, 784)
    assert split.test_x.shape == (1000, 784)
    assert split.train_y.bincount().tolist() == [400] * 10
    assert split.test_y.bincount().tolist() == [100] * 10
    for x in (split.train_x, split.test_x):
        assert (x.min(), x.max()) == (0, 1)
    assert split.train_x.dtype == torch.float32


def test_no_digit_is_in_both_parts():
    split = data.digits()
    train = {row.numpy().tobytes() for row in split.train_x}
    test = {row.numpy().tobytes() for row in split.test_x}
    assert len(train) == 4000
    assert not train & test


def test_the_digits_look_like_digits():
    # Nearest class mean, an oracle that knows nothing of this package.
    split = data.digits()
    means = torch.stack([split.train_x[split.train_y == d].mean(0) for d in range(10)])
    nearest = torch.cdist(split.test_x, means).argmin(1)
    assert (nearest == split.test_y).double().mean() > 0.75


def test_the_digits_are_the_same_each_time():
    assert torch.equal(data.digits().train_x, data.digits().train_x)


def test_fashion_mnist_that_is_not_there_is_not_fetched(tmp_path):
    with pytest.raises(RuntimeError, match="not found"):
        data.fashion_mnist(str(tmp_path))


def test_fashion_mnist_is_read_as_the_digits_are(tmp_path):
    # Files in the format of the originals, three images each, written by hand.
    import gzip
    import struct

    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, rows in (("train", 3), ("t10k", 2)):
        images = struct.pack(">4i", 2051, rows, 28, 28) + bytes([255] * rows * 784)
        labels = struct.pack(">2i", 2049, rows) + bytes(range(rows))
        for name, raw in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{name}-ubyte"
            path.write_bytes(raw)
            path.with_suffix(".gz").write_bytes(gzip.compress(raw))
    split = data.fashion_mnist(str(tmp_path))
    assert split.train_x.shape == (3, 784)
    assert split.test_x.eq(1).all()
    assert split.test_y.tolist() == [0, 1]
