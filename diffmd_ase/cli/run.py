"""``diffmd run``: trajectories by harmonic-coupled reverse steps, plain, accepted or biased."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..simulation.settings import Files, RunSettings
from .config import Config, resolved, save_resolved
from .options import AsJson, Progress, check_output, one_thread, options_of
from .output import bar, say, show

if TYPE_CHECKING:
    from ..io.ranks import Ranks

__all__ = ["run"]


@options_of(RunSettings)
def run(
    context: typer.Context,
    settings: RunSettings,
    restart: Annotated[
        bool, typer.Option("--restart", help="go on from PREFIX.restart to --steps in all")
    ] = False,
    progress: Progress = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the settings, write nothing")
    ] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Trajectories by harmonic-coupled reverse steps; restartable at any moment.

    The step is one of --step-size, --spring, --timestep with --friction, or a stable default.
    Walkers and steps have noise of their own: batches, shares and restarts change no number.
    With --target each step is accepted or rejected, which removes the error of the step and,
    with a reference, that of the model. With --parallel one trajectory is made many steps at a
    time: the same one, or with --draft another of the same law. Started by torchrun, its processes
    share the walkers: the same trajectory for any number of them.
    """
    from ..io.ranks import Ranks
    from ..simulation.planned import PlannedRun

    one_thread()
    prefix, trajectory = Path(settings.prefix), Files(settings.prefix).trajectory
    check_output(trajectory, own=".h5", reads=[settings.model, settings.start])
    started = Ranks.started(timeout=settings.rank_timeout)
    with started or Ranks() as ranks:
        planned = PlannedRun.of(settings, restart=restart, dry=dry_run, ranks=started)
        if dry_run:
            _of_first(ranks, lambda: show(planned.facts(), as_json))
            return
        x = planned.start()
        if not restart:
            _of_first(ranks, lambda: save_resolved(context, prefix))
        compiled = planned.compiled(x)
        if compiled and ranks.leads:
            say("compiling the network, once, which takes up to a minute (--compile off: without)")
        with bar("run", settings.steps, progress and ranks.leads) as update:
            summary = planned.run(
                x,
                extra=resolved(context),
                compiled=compiled,
                progress=lambda done, alive: update(
                    done,
                    f"step {done}  D·t {done * planned.h:.3g} Å²  walkers {alive}{planned.gain}",
                ),
            )
        if restart:  # now known to fit; there may be more steps
            _of_first(ranks, lambda: save_resolved(context, prefix))
        _of_first(ranks, lambda: show({**summary, "trajectory": str(trajectory)}, as_json))


def _of_first(ranks: Ranks, work: Callable[[], None]) -> None:
    """Files and words that all ranks have in common are those of rank 0."""
    if ranks.leads:
        work()
