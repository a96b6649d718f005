"""Short runs of ``handgrad train`` for its tests, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

QUICK = ("--limit", "300", "--epochs", "2", "--hidden", "16", "--device", "cpu", "--no-plot")


def metrics(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def config(run: str | Path) -> dict:
    return json.loads((Path(run) / "config.json").read_text())


def write_csv(path: Path, X: np.ndarray, y: np.ndarray) -> Path:
    np.savetxt(path, np.column_stack([X, y]), delimiter=",", fmt="%.9g")
    return path


def numbers_csv(path: Path = Path("line.csv"), noise: float = 0.01) -> Path:
    """y = 2 x1 - x2 + 0.5 with a little noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 2))
    return write_csv(path, X, X @ [2.0, -1.0] + 0.5 + noise * rng.standard_normal(200))
