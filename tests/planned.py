"""Networks and data for the tests of plans, and the paths that there are."""

from __future__ import annotations

import numpy as np

from handgrad.arrays import to_device
from handgrad.network import MLP
from handgrad.plans import paths

PATHS = tuple(paths.MODULES)
STEP_PATHS = tuple(name for name in paths.STEP_ORDER if name in paths.MODULES)
LAUNCHES = {"R1": 2, "R2": 0, "R3": 2, "R4": 4}  # of a step


def network(path=None, sizes=(20, 12, 3), loss="cross_entropy", device="emulator", **settings):
    return MLP(list(sizes), loss=loss, device=device, path=path, seed=3, **settings)


def data(N=45, D=20, C=3, loss="cross_entropy", seed=1, dtype="float32"):
    random = np.random.default_rng(seed)
    X = random.normal(size=(N, D)).astype(dtype)
    if loss in ("cross_entropy", "hinge"):
        return X, random.integers(0, C, N)
    return X, random.random((N, C)).astype(dtype)


def on_emulator(*arrays):
    return [to_device(array, "emulator") for array in arrays]
