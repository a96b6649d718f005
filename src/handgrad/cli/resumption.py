"""``handgrad train --resume RUN``: the options of the run, and its newest checkpoint."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handgrad.cli import choices, run_directory
from handgrad.cli.errors import wrong
from handgrad.cli.run_directory import RunDirectory

if TYPE_CHECKING:
    import typer

    from handgrad.checkpoint import Content
    from handgrad.datasets import Dataset
    from handgrad.distributed.ranks import Ranks

# What may be said anew with --resume: it changes no bit of the result, or (--device, --on-nonfinite) is asked
# for knowingly.
FREE = ("device", "kernels", "checkpoint_every", "on_nonfinite", "no_plot", "quiet", "as_json", "resume")
# What the run's folder does not keep.
FORGOTTEN = ("resume", "out_directory", "quiet", "as_json")
_KINDS = {
    "activation": choices.Activation,
    "output": choices.Activation,
    "loss": choices.Loss,
    "optimizer": choices.Optimizer,
    "schedule": choices.Schedule,
    "on_nonfinite": choices.OnNonfinite,
    "dtype": choices.Dtype,
    "task": choices.Task,
    "init": Path,
    "kernels": Path,
}


@dataclass(frozen=True)
class Resumed:
    """A run to go on with: its folder, what config.json says, and the newest whole checkpoint.

    ``newest`` is None where the run was stopped before it wrote one: it starts at its beginning.
    """

    directory: RunDirectory
    config: dict[str, Any]
    newest: tuple[Path, Content] | None

    def check_data(self, training: Dataset, watched: Dataset, test: Dataset) -> None:
        """Refuse data that are not those of the run; an older run kept the digest of the training part alone.

        ``watched`` is what is looked at after every epoch: the test part itself, or the part held out.
        """
        from handgrad.datasets.digest import digest

        described = self.config["data"]
        parts = {"": ("training", training), "validation_": ("validation", watched), "test_": ("test", test)}
        for prefix, (name, part) in parts.items():
            stored = described.get(f"{prefix}sha256")
            if stored is not None and stored != digest(part):
                spec = described["spec"]
                found = f"others: the files changed, in their {name} part"
                raise wrong("--resume", f"the data of the run in {spec}", found)


def go_on(ctx: typer.Context, run: Path, ranks: Ranks, train: Callable[..., None]) -> None:
    """Call ``train`` with the options of ``run``, and with what it goes on from in ``ctx.obj``.

    Rank 0 reads, for the others may not see the folder.
    """
    with contextlib.ExitStack() as held:
        found: tuple[dict[str, Any], Resumed] | None = None
        if ranks.rank == 0:
            directory = find(run)
            held.enter_context(directory.locked())
            found = stored_options(ctx, directory), read_newest(directory)
        options, ctx.obj = ranks.broadcast(found)
        ctx.params.update(options)
        train(ctx, **ctx.params)


def stored_options(ctx: typer.Context, directory: RunDirectory) -> dict[str, Any]:
    """The arguments of ``train`` as the run was started, and those that this call says anew.

    ``ValueError`` for options beside ``--resume`` that would make it another run.
    """
    given = [
        parameter
        for parameter in ctx.command.params
        if getattr(ctx.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    for parameter in given:
        if parameter.name not in FREE:
            raise wrong(
                parameter.opts[0], "no such option beside --resume", "it", "the run keeps the options it has"
            )
    options = directory.read_config().get("options")
    if not isinstance(options, dict):
        raise wrong("--resume", "a run that this handgrad wrote", f"{directory.path}, without its options")
    values = dict(ctx.params)
    for name, value in options.items():
        if name in values:
            kind = _KINDS.get(name)
            values[name] = kind(value) if kind is not None and value is not None else value
    for parameter in given:
        values[str(parameter.name)] = ctx.params[str(parameter.name)]
    return values


def find(run: Path) -> RunDirectory:
    """The run directory that ``--resume`` names."""
    if not run.is_dir():
        raise wrong("--resume", "a run's folder", f"{run}, which is none", "`handgrad train` makes one")
    directory = RunDirectory(run)
    if not directory.config.is_file():
        remedy = "it was stopped before it began; start it again"
        raise wrong("--resume", "a run's folder with config.json", run, remedy)
    return directory


def read_newest(directory: RunDirectory) -> Resumed:
    """The run with its newest whole checkpoint; a damaged one is told on stderr.  The run must be locked."""
    from handgrad import resume

    run_directory.remove_leftovers(directory)
    found = resume.newest(directory.checkpoints, lambda line: print(f"handgrad: {line}", file=sys.stderr))
    if found is None:
        print(f"handgrad: {directory.path} has no checkpoint yet: from its beginning", file=sys.stderr)
    return Resumed(directory, directory.read_config(), found)
