"""What a user installs: the contents of wheel and sdist; an editable install that sees a changed kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="builds the package: pip install 'handgrad[test]'")

FILES_OF_A_CHECKOUT = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    ".gitignore",
)
FOLDERS_OF_A_CHECKOUT = ("src", "kernels", "tests", "bench", "docs")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command and return what it printed; its output is the failure message where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path, target: str) -> Path:
    """The wheel or sdist of ``source``, built by the backend that pip would call."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    (built,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


def install(wheel: Path, target: Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=target.parent,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, without what git ignores: these tests may change it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("runs in a checkout only: it builds the package")
    folder = tmp_path_factory.mktemp("checkout")
    for name in FILES_OF_A_CHECKOUT:
        shutil.copy2(root / name, folder)
    for name in FOLDERS_OF_A_CHECKOUT:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.o")
            )
    return folder


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy, tmp_path_factory.mktemp("sdist"), "sdist")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_below(folder: Path, *suffixes: str) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    }


def test_the_wheel_holds_the_package_whole(copy, wheel):
    """Every file of src/handgrad and of kernels/, unaltered, and nothing else beside the metadata."""
    expected = {
        f"handgrad/{name}": copy / "src/handgrad" / name for name in files_below(copy / "src/handgrad")
    }
    expected |= {
        f"handgrad/kernels/{name}": copy / "kernels" / name for name in files_below(copy / "kernels")
    }
    inside = {name: data for name, data in contents(wheel).items() if ".dist-info/" not in name}
    assert set(inside) == set(expected)
    for name, path in expected.items():
        assert inside[name] == path.read_bytes(), name


@pytest.mark.parametrize(
    "name",
    [
        "handgrad/py.typed",
        "handgrad/kernels/common.cuh",
        "handgrad/kernels/linear.cu",
        "handgrad/data/mnist_subset.npz",
        "handgrad/data/NOTICE",
    ],
)
def test_the_wheel_holds(wheel, name):
    assert name in contents(wheel)


def test_the_wheel_holds_the_emulators_sources(wheel):
    suffixes = {Path(name).suffix for name in contents(wheel) if name.startswith("handgrad/emulator/")}
    assert suffixes & {".h", ".hpp", ".cuh"}
    assert suffixes & {".cpp", ".cc"}


def test_the_metadata(wheel):
    inside = contents(wheel)
    (metadata,) = (data.decode() for name, data in inside.items() if name.endswith(".dist-info/METADATA"))
    licenses = {name.split(".dist-info/licenses/")[1] for name in inside if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "src/handgrad/data/NOTICE"}
    lines = metadata.splitlines()
    assert "License-Expression: MIT AND CC-BY-SA-3.0" in lines
    assert "Requires-Python: >=3.11" in lines
    extras = {line.split(": ")[1] for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"cuda12x", "cuda13x", "emulator", "mpi", "test", "fuzz", "peers", "machine-code"}
    (entry_points,) = (data.decode() for name, data in inside.items() if name.endswith("entry_points.txt"))
    assert "handgrad = handgrad.cli:main" in entry_points


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = build(source, tmp_path / "wheel", "wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_sdist_holds_what_checks_it(copy, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    for folder in ("tests", "bench", "kernels"):
        assert {f"{folder}/{name}" for name in files_below(copy / folder, ".py", ".cu", ".cuh")} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"} <= names


WHERE = "import handgrad.kernel as k; print(k.kernels_directory()); print(k.__file__)"
NUMPY_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])

class NumpyAlone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"handgrad", "numpy", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NumpyAlone())
"""


def test_an_installed_wheel_finds_its_kernels_with_numpy_alone(copy, wheel, tmp_path):
    target = tmp_path / "site"
    install(wheel, target)
    printed = run(sys.executable, "-c", NUMPY_ALONE + WHERE, target, cwd=tmp_path).splitlines()
    assert printed == [str(target / "handgrad/kernels"), str(target / "handgrad/kernel.py")]
    assert files_below(target / "handgrad/kernels") == files_below(copy / "kernels")


def test_an_installed_wheel_reads_its_embedded_data(wheel, tmp_path):
    target = tmp_path / "site"
    install(wheel, target)
    code = (
        "from handgrad import datasets\n"
        "split = datasets.load('mnist-subset')\n"
        "print(split.train.X.shape, split.test.X.shape)\n"
    )
    printed = run(sys.executable, "-c", NUMPY_ALONE + code, target, cwd=tmp_path)
    assert printed == "(10000, 784) (2000, 784)\n"


def test_an_editable_install_sees_a_changed_kernel(copy, tmp_path):
    """No second copy of the kernels anywhere: the digest that CuPy's cache hangs on follows the checkout."""
    run(
        sys.executable,
        "-c",
        "import hatchling.build, sys; hatchling.build.build_editable(sys.argv[1])",
        tmp_path,
        cwd=copy,
    )
    (editable,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    install(editable, target)
    assert not list(target.rglob("*.cu"))
    code = (
        "import site, sys\n"
        "site.addsitedir(sys.argv[1])\n"
        "sys.path.insert(0, sys.path.pop())\n"  # before an installed handgrad
        "import handgrad.kernel as k\n"
        "folder = k.kernels_directory()\n"
        "print(folder, k.sources_digest(folder, 'linear.cu'))\n"
    )
    folder, before = run(sys.executable, "-c", code, target, cwd=tmp_path).split()
    assert folder == str(copy / "kernels")
    source = copy / "kernels" / "linear.cu"
    text = source.read_text()
    source.write_text(text + "// changed\n")
    try:
        _, after = run(sys.executable, "-c", code, target, cwd=tmp_path).split()
    finally:
        source.write_text(text)
    assert after != before
