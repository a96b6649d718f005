"""What the shared headers promise to kernels, tried by small kernels that rely on all of it.

The project's kernels use a part of what ``kernels/common.cuh`` promises: of the blocks that meet in
``last_block``, for example, one thread each has written something.  So ``handgrad kernels sanitize`` also
searches the kernels of this folder, each launched as the TOML file beside it says, and compiled against the
headers of the folder of kernels that is in use.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from handgrad.emulator.build import included
from handgrad.emulator.compiler import cache_directory
from handgrad.kernel import kernels_directory

FOLDER = Path(__file__).parent


def sources() -> Iterator[tuple[Path, Path]]:
    """Each kernel's source, in a folder with copies of the headers, and its launch description."""
    headers = sorted(kernels_directory().glob("*.cuh"))
    trials = sorted(FOLDER.glob("*.cu"))
    digest = hashlib.sha256()
    for path in (*headers, *trials):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    place = cache_directory() / f"headers-{digest.hexdigest()[:16]}"
    if not place.is_dir():
        unfinished = Path(tempfile.mkdtemp(dir=cache_directory(), prefix="build-"))
        for path in (*headers, *trials):
            shutil.copy(path, unfinished)
        try:
            unfinished.rename(place)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    for trial in trials:
        yield place / trial.name, trial.with_suffix(".toml")


def sources_with(header: str) -> list[tuple[Path, Path]]:
    """Those of :func:`sources` that include ``header``, directly or not."""
    return [one for one in sources() if header in {path.name for path in included(one[0])}]
