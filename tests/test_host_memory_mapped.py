"""Training on data that memory does not hold: a memory-mapped X five times the memory that is allowed."""

import json
import subprocess
import sys

import numpy as np
import pytest

MIB = 2**20
ALLOWED = 16 * MIB
COLUMNS = 512

CODE = """
import ctypes, json, re, resource, sys, threading
from pathlib import Path

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: resident memory is counted in small pages
import numpy as np
import handgrad as hg
from handgrad.host import arrangement, blas

path, allowed, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
X = np.load(path, mmap_mode="r")
y = np.load(path + ".y.npy")
net = hg.MLP([X.shape[1], 32, 10], loss="cross_entropy", device="cpu", seed=1)
optimizer = hg.SGD(0.1)
scale = 1 / 255 if X.dtype == np.uint8 else 1.0
arrangement.parts = lambda rows, *rest: 2 if rows >= 64 else 1

def status(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def epoch(rows):
    return net.train_epoch(X, y, np.arange(rows), batch, optimizer, None, scale)

def multiply():
    square = np.ones((1024, 1024), np.float32)
    together.wait()
    for _ in range(20):
        square @ square

together = threading.Barrier(2)
with blas.find().held():  # BLAS has a buffer for each of two callers at a time
    others = [threading.Thread(target=multiply) for _ in range(2)]
    [other.start() for other in others]
    [other.join() for other in others]
epoch(2 * batch)  # buffers and threads are there
if not scale == 1.0:
    net.loss_and_grad(X[:8192], y[:8192])
net.train_step(X[:8192], y[:8192], optimizer)
before, data = status("RssAnon"), status("VmData")
resource.setrlimit(resource.RLIMIT_DATA, (data + allowed, resource.RLIM_INFINITY))
try:
    np.array(X)
    fits = True
except MemoryError:
    fits = False
losses = epoch(len(X))
whole = net.train_step(X, y, optimizer)  # one step on all rows
print(json.dumps({
    "fits": fits, "bytes": X.nbytes, "grown": status("RssAnon") - before,
    "losses": [float(losses[0]), float(losses[-1])], "whole": float(whole),
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited by Linux' RLIMIT_DATA")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_set_five_times_the_allowed_memory(tmp_path, dtype):
    rows = 5 * ALLOWED // (COLUMNS * np.dtype(dtype).itemsize)
    path = tmp_path / "X.npy"
    mapped = np.lib.format.open_memmap(path, "w+", dtype, (rows, COLUMNS))
    random = np.random.default_rng(0)
    y = random.integers(0, 10, rows)
    for start in range(0, rows, 4096):  # a class shows in its own columns
        labels = y[start : start + 4096]
        block = random.integers(0, 128, (len(labels), COLUMNS)).astype(np.uint8)
        block[np.arange(len(labels))[:, None], 40 * labels[:, None] + np.arange(40)] += 100
        mapped[start : start + 4096] = block if dtype == "uint8" else block.astype(dtype) / 255
    del mapped
    np.save(f"{path}.y.npy", y)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(path), str(ALLOWED), "1024"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes"] == 5 * ALLOWED
    assert not found["fits"]  # the limit bites: the data themselves do not fit
    assert found["grown"] < 4 * MIB, "resident memory grew with the data"
    first, last = found["losses"]
    assert last < 0.9 * first
    assert found["whole"] < first
