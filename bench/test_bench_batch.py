"""``ops.batch``: 128 rows of 784 uint8 pixels gathered, scaled and turned into float32."""

import numpy as np
from agreement import assert_close

from handgrad.ops import batch


def test_gather(put, measure, rng):
    pixels = rng.integers(256, size=(10_000, 784), dtype=np.uint8)
    rows = rng.permutation(len(pixels))[:128].astype(np.int32)
    X, order = put(pixels), put(rows)
    out = batch.gather(X, order, scale=1 / 255, dtype=np.float32)
    assert_close(out, pixels[rows] / 255)
    measure(lambda: batch.gather(X, order, out=out, scale=1 / 255, dtype=np.float32))
