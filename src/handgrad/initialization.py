"""The parameters of a network of dense layers: their shapes, and the values they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Standard deviation of the weights' normal distribution, from the layer's inputs and outputs.
INITIALIZATIONS: dict[str, Callable[[int, int], float]] = {
    "he": lambda fan_in, fan_out: (2.0 / fan_in) ** 0.5,  # He et al. 2015, arXiv:1502.01852
    "glorot": lambda fan_in, fan_out: (2.0 / (fan_in + fan_out)) ** 0.5,  # Glorot and Bengio 2010
    "lecun": lambda fan_in, fan_out: (1.0 / fan_in) ** 0.5,  # LeCun et al. 1998, Efficient BackProp
    "zeros": lambda fan_in, fan_out: 0.0,
}


def parameter_shapes(sizes: Sequence[int], bias: bool) -> dict[str, tuple[int, ...]]:
    """``{"W1": (D, H), "b1": (H,), "W2": …}`` for the widths ``sizes``, in the order of the flat buffer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(1, len(sizes)):
        fan_in, fan_out = sizes[layer - 1 : layer + 1]
        shapes[f"W{layer}"] = (fan_in, fan_out)
        if bias:
            shapes[f"b{layer}"] = (fan_out,)
    return shapes


def initial_values(
    shapes: Mapping[str, tuple[int, ...]], init: str, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Weights drawn in the order of ``shapes`` from PCG64(``seed``), scaled as ``init`` says; biases 0.

    In float64 on the host, so that every device and dtype starts from the same values.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    deviation = INITIALIZATIONS[init]
    values: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            values[name] = random.standard_normal(shape) * deviation(*shape)
        else:
            values[name] = np.zeros(shape)
    return values
