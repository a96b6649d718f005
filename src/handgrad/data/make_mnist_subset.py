"""Make ``mnist_subset.npz`` from MNIST's four IDX files.

    python -m handgrad.data.make_mnist_subset DIRECTORY [OUTPUT]

DIRECTORY holds the IDX files, gzipped or not; OUTPUT is mnist_subset.npz beside this script unless given.
The archive holds X_train (10000, 28, 28), y_train (10000,), X_test (2000, 28, 28), y_test (2000,), all uint8.
Its bytes depend on the images and the zlib version alone: no dates, a fixed order.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from handgrad.datasets.idx import read_directory
from handgrad.datasets.numpy_files import npy_bytes

ROWS = {"X_train": 10_000, "y_train": 10_000, "X_test": 2_000, "y_test": 2_000}


def make(directory: Path, output: Path) -> None:
    """Write the first rows of the IDX files in ``directory`` to the archive ``output``."""
    arrays = {key: array[: ROWS[key]] for key, (_, array) in read_directory(directory).items()}
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, array in arrays.items():
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3  # the same on every system
            archive.writestr(member, npy_bytes(array), compresslevel=9)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m handgrad.data.make_mnist_subset DIRECTORY [OUTPUT]")
    make(
        Path(sys.argv[1]),
        Path(sys.argv[2] if len(sys.argv) == 3 else Path(__file__).parent / "mnist_subset.npz"),
    )
