"""``diffmd sample``: independent samples of a molecule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import Config, save_resolved
from .options import COMPILE, Compile, Device, Model, Progress, Seed, check_output, one_thread
from .output import bar, say

__all__ = ["sample"]

_WINDOW = 16  # levels made together


def sample(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="any format ASE writes, or .npz")],
    n: Annotated[int, typer.Option("--number", "-n", min=1, help="samples")] = 1000,
    levels: Annotated[int, typer.Option(min=2, help="noise levels")] = 150,
    corrector_steps: Annotated[
        int, typer.Option(min=0, help="Langevin steps at each noise level")
    ] = 1,
    relax_steps: Annotated[int, typer.Option(min=0, help="steps of dynamics at the end")] = 200,
    parallel: Annotated[
        bool,
        typer.Option("--parallel", help="many levels at a time, for a few samples: the same ones"),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    compile: Compile = "auto",
    progress: Progress = True,
    config: Config = None,
) -> None:
    """Independent samples of a molecule, by ordinary reverse diffusion.

    Writes the samples, and the options used to OUTPUT.yml.
    """
    from ..independent.draws import sample as draw
    from ..noise import Noise
    from ..score.model import ScoreModel
    from ..simulation.frames import frame_writer

    one_thread()
    check_output(output, reads=[model])
    loaded = ScoreModel.load(model)
    write = frame_writer(output)
    with bar("sampling", 1.0, progress) as update:
        x = draw(
            loaded,
            n,
            noise=Noise(seed),
            levels=levels,
            corrector_steps=corrector_steps,
            relax_steps=relax_steps,
            device=device,
            compile=COMPILE[compile],
            window=_WINDOW if parallel else None,
            progress=update,
        )
        update(1.0)
    write(loaded.system, x.double().cpu().numpy(), loaded.card.temperature_K)
    save_resolved(context, output)
    say(f"wrote {n} samples to {output}")
