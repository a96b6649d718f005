"""``ops.optimizer``: one update of all parameters of a 784→256→10 network."""

import numpy as np
import pytest
from agreement import assert_close

from handgrad.ops.optimizer import SGD, Adam, AdamW
from handgrad.parameters import FlatParameters

SHAPES = {"W1": (784, 256), "b1": (256,), "W2": (256, 10), "b2": (10,)}
LR = 0.01


def first_step(name, w, g):
    """The parameters after one update from zero state (bias-corrected Adam moves by lr·sign(g) nearly)."""
    if name in ("sgd", "momentum"):
        return w - LR * g
    decay = 0.01 * LR * w if name == "adamw" else 0.0
    return w - decay - LR * g / (np.abs(g) + 1e-8)


MAKE = {
    "sgd": lambda: SGD(lr=LR),
    "momentum": lambda: SGD(lr=LR, momentum=0.9),
    "adam": lambda: Adam(lr=LR),
    "adamw": lambda: AdamW(lr=LR, weight_decay=0.01),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("clip_norm", [None, 1e6], ids=["plain", "clipped"])
def test_update(name, clip_norm, device, measure, rng):
    xp = device.array_module
    with device:
        parameters = FlatParameters(SHAPES, np.float32, xp)
        gradients = FlatParameters(SHAPES, np.float32, xp)
    w = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()}
    g = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()}
    parameters.copy_from(w)
    gradients.copy_from(g)
    optimizer = MAKE[name]()
    with device:
        optimizer.update(parameters, gradients, clip_norm=clip_norm)
    for key in SHAPES:
        assert_close(parameters.views[key], first_step(name, w[key].astype(float), g[key].astype(float)))
    measure(lambda: optimizer.update(parameters, gradients, clip_norm=clip_norm))
