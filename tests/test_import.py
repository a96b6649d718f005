"""``import handgrad`` needs NumPy alone: no other library, no GPU, no compiler."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import handgrad

OPTIONAL = ("cupy", "typer", "rich", "matplotlib", "safetensors", "threadpoolctl", "ziglang", "torch", "jax")


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The top-level modules that ``import handgrad`` brings, beyond those of ``import numpy``."""
    code = (
        "import json, sys, numpy\n"
        "before = set(sys.modules)\n"
        "import handgrad\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    done = in_new_process(code)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_imports_nothing_but_numpy_and_the_standard_library(imported):
    assert imported - set(sys.stdlib_module_names) == {"handgrad", "numpy"}


@pytest.mark.parametrize("name", OPTIONAL)
def test_imports_no(imported, name):
    assert name not in imported


def test_works_where_the_other_libraries_are_missing():
    code = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import numpy as np
import handgrad as hg

net = hg.MLP([3, 4, 2], device="cpu", seed=1)
loss, grads = net.loss_and_grad(np.ones((5, 3), np.float32), np.zeros((5, 2), np.float32))
assert np.isfinite(hg.to_numpy(loss)) and hg.to_numpy(grads["W1"]).shape == (3, 4)
"""
    done = in_new_process(code)
    assert done.returncode == 0, done.stderr


def test_starts_no_process_and_touches_no_file():
    """No compiler, no probe of a GPU, no cache folder made: an audit hook sees each of them."""
    code = """
import sys, numpy

def hook(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.mkdir",
                 "ctypes.dlopen", "socket.connect"):
        raise AssertionError(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise AssertionError(f"{event} {arguments}")

sys.dont_write_bytecode = True
sys.addaudithook(hook)
import handgrad
"""
    done = in_new_process(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    for name in handgrad.__all__:
        assert getattr(handgrad, name) is not None
    assert len(handgrad.__all__) == len(set(handgrad.__all__))


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert handgrad.__version__ == version("handgrad")
