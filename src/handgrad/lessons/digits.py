"""Where the lessons on digits find the whole of MNIST."""

from __future__ import annotations

import os


def whole_mnist() -> str:
    """The folder with MNIST's four IDX files, from HANDGRAD_MNIST; ``ValueError`` where it is not set."""
    folder = os.environ.get("HANDGRAD_MNIST", "")
    if not folder:
        raise ValueError(
            "--full: expected the folder with MNIST's four IDX files in HANDGRAD_MNIST or --data, got none; "
            "leave --full out for the embedded digits"
        )
    return folder
