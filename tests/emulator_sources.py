"""The small kernels of tests/emulator_kernels, and the lines of their planted faults."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "emulator_kernels"
CORRECT = FOLDER / "correct.cu"
FAULTS = FOLDER / "faults.cu"
FEATURES = FOLDER / "features.cu"

ORDERS = ("forward", "reverse", "lifo", "random")


def line_of(mark: str) -> str:
    """``faults.cu:N`` of the line that ends in ``// FAULT mark``."""
    lines = FAULTS.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"// FAULT {mark}")]
    return f"faults.cu:{number}"
