"""Coverage-guided search for files that a reader does not take well: `python tests/fuzz.py [READER…]`.

Needs `pip install atheris` (Linux).  Each reader runs in a process of its own, under a limit of memory, and
stops at the first file that it neither reads nor refuses in one line; the file is kept.  --runs says how many
files each reader is given.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = 20  # that one file may take
MEMORY = 1 << 30  # bytes of address space beside what the process has at its start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help="by default all")
    parser.add_argument("--runs", type=int, default=100_000, help="files a reader (default: 100,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=Path("fuzz-failures"), help="where failing files go")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.readers[0], options.runs, options.seed, options.kept)
        return 0
    from fuzzed_readers import READERS

    names = [reader.name for reader in READERS]
    for name in options.readers:
        if name not in names:
            parser.error(f"READER: expected one of {', '.join(names)}, got {name!r}")
    failed = 0
    for name in options.readers or names:
        command = [sys.executable, __file__, name, "--child", "--runs", str(options.runs)]
        command += ["--seed", str(options.seed), "--kept", str(options.kept)]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        words = "no crash" if done.returncode == 0 else "FAILED"
        failed += done.returncode != 0
        print(f"{name}: {options.runs} files, {words}, {time.monotonic() - begun:.0f} s", flush=True)
        if done.returncode:
            print("\n".join((done.stdout + done.stderr).splitlines()[-30:]), flush=True)
    print(f"{len(options.readers or names) - failed} passed, {failed} failed")
    return 1 if failed else 0


def fuzz(name: str, runs: int, seed: int, kept: Path) -> None:
    """Feed one reader in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["handgrad"]):
        import handgrad.benchmark.compare
        import handgrad.checkpoint
        import handgrad.datasets
        import handgrad.gradients.archive
        import handgrad.proof.launch_description
        import handgrad.streaming.shard_files  # noqa: F401
    from fuzzed_readers import READERS, problem

    reader = next(reader for reader in READERS if reader.name == name)
    with tempfile.TemporaryDirectory() as folder:
        corpus, work = Path(folder) / "corpus", Path(folder) / "work"
        for path in (corpus, work, kept):
            path.mkdir(parents=True, exist_ok=True)
        for number, whole in enumerate(reader.wholes()):
            (corpus / str(number)).write_bytes(whole)
            problem(reader, whole, work)  # imports what reading needs before memory is limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        def one(content: bytes) -> None:
            found = problem(reader, content, work)
            if found:
                raise AssertionError(found)

        flags = [f"-runs={runs}", f"-seed={seed}", f"-timeout={SECONDS}", "-max_len=8192", "-rss_limit_mb=0"]
        atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={kept}/{name}-", str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
