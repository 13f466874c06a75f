"""The files of a run in PLUMED, first step to final jobs, are those of `plumed driver`."""

import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.md.langevin import Langevin
from diffmd_plumed import Driver, PlumedCVPotential, PlumedPotential
from four_atoms import SYSTEM, X
from tool import KT, check_same_text, drive

from diffmd_ase import ScoreCalculator
from diffmd_ase.io.run_info import RunInfo
from diffmd_ase.noise import Noise
from diffmd_ase.potentials.analytic import Harmonic
from diffmd_ase.potentials.biases.cvs import Distance
from diffmd_ase.sampling.euler import EulerMaruyama
from diffmd_ase.sampling.metropolis import Metropolis
from diffmd_ase.sampling.run import run, survive
from diffmd_ase.simulation.settings import Files
from diffmd_ase.simulation.simulate import simulate

CV = ["d: DISTANCE ATOMS=1,2", "t: TORSION ATOMS=1,2,3,4"]
PRINT = "PRINT ARG=* FILE=COLVAR"
AVERAGES = [
    "h: HISTOGRAM ARG=d GRID_MIN=0 GRID_MAX=2 GRID_BIN=20 BANDWIDTH=0.1",
    "f: CONVERT_TO_FES GRID=h TEMP=300",
    "DUMPGRID ARG=f FILE=fes",
    "k: HISTOGRAM ARG=d GRID_MIN=0 GRID_MAX=2 GRID_BIN=9 KERNEL=DISCRETE CLEAR=8",
    "DUMPGRID ARG=k FILE=parts STRIDE=8",
    "a: AVERAGE ARG=t",
    "PRINT ARG=a FILE=means STRIDE=6",
    "DUMPATOMS ATOMS=1-2 FILE=atoms.xyz STRIDE=7",
]
# each learns from the first step on, at every step
LEARNING = {
    "METAD": ["METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=5 BIASFACTOR=8"],
    "METAD, pace 1": ["METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=1"],
    "METAD, adaptive": ["METAD ARG=t ADAPTIVE=DIFF SIGMA=3 HEIGHT=1 PACE=4"],
    "OPES, adaptive": ["OPES_METAD ARG=d PACE=3 BARRIER=20 ADAPTIVE_SIGMA_STRIDE=4"],
    "EDS": ["EDS ARG=d CENTER=0.35 PERIOD=6 RANGE=5 OUT_RESTART=eds SEED=3"],
    "MAXENT": ["MAXENT ARG=d TYPE=EQUAL AT=0.3 KAPPA=0.1 TAU=1 PACE=2 PRINT_STRIDE=1 FILE=lag"],
    "VES": [
        "b: BF_FOURIER ORDER=3 MINIMUM=-pi MAXIMUM=pi",
        "v: VES_LINEAR_EXPANSION ARG=t BASIS_FUNCTIONS=b TEMP=300 GRID_BINS=100",
        "OPT_AVERAGED_SGD BIAS=v STRIDE=4 STEPSIZE=0.1 COEFFS_OUTPUT=1 COEFFS_FILE=coeffs",
    ],
    "schedule": [
        "m: MOVINGRESTRAINT ARG=d STEP0=0 AT0=0.3 KAPPA0=0 STEP1=20 AT1=0.4 KAPPA1=500",
        "EFFECTIVE_ENERGY_DRIFT PRINT_STRIDE=1 FILE=drift",
    ],
    "stop": ["COMMITTOR ARG=t BASIN_LL1=1.2 BASIN_UL1=1.5 NOSTOP FILE=basins"],
    "averages": AVERAGES,
}


def potential(lines, folder, **options):
    options = {"kT": KT, "timestep": units.fs, "directory": folder, **options}
    return PlumedPotential(SYSTEM, lines, **options)


def kernel_of(bias):
    return EulerMaruyama(Harmonic(0.5, centre=X, system=SYSTEM) + bias, kT=KT, h=2e-2)


def walk(bias, walkers, steps):
    """Positions (T, B, N, 3) of a run, its start first."""
    shift = 0.1 * torch.arange(walkers)[:, None, None] * X.roll(1, 0)
    start = X + shift if walkers > 1 else X.clone()
    frames = [start] + [s.x for s, _ in run(kernel_of(bias), start, steps, noise=Noise(1))]
    return torch.stack(frames).numpy().reshape(-1, walkers, 4, 3)


@pytest.mark.parametrize("name", LEARNING)
def test_files_are_those_of_plumed_driver(name, tmp_path):
    lines = [*CV, *LEARNING[name], PRINT]
    with potential(lines, tmp_path / "ours") as bias:
        frames = walk(bias, 1, 24)
    check_same_text(tmp_path / "ours", drive(tmp_path / "driver", lines, frames[:, 0]))


def test_independent_walkers_are_runs_of_their_own(tmp_path):
    """From the start on, which differs; to the end, which one of them has earlier."""
    lines = [*CV, *LEARNING["METAD, adaptive"], *AVERAGES, PRINT]
    bias = potential(lines, tmp_path / "ours", walkers="independent")
    frames = walk(bias, 3, 20)
    bias.select(torch.tensor([True, False, True]))
    assert (tmp_path / "ours" / "walker-1" / "fes").is_file()
    bias.finalize()
    for walker in range(3):
        reference = drive(tmp_path / f"{walker}", lines, frames[:, walker])
        check_same_text(tmp_path / "ours" / f"walker-{walker}", reference)


def test_walkers_of_one_instance_start_together(tmp_path):
    """A row of each at time 0, and no hill: PLUMED's first step is that of every walker."""
    metad = "METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=1"  # without a label: it has a number
    lines = [CV[0], "w: EXTRACV NAME=walker", metad, "PRINT ARG=w,d FILE=COLVAR"]
    with potential(lines, tmp_path) as bias:
        frames = walk(bias, 3, 4)
        assert set(bias.values()) == set(potential(lines, tmp_path / "one").describe(X))
    rows = np.loadtxt(tmp_path / "COLVAR")
    d = 0.1 * np.linalg.norm(frames[..., 0, :] - frames[..., 1, :], axis=-1)
    steps, walkers = np.divmod(np.arange(15), 3)
    np.testing.assert_allclose(rows[:, 0], 0.001 * steps, atol=1e-9)
    np.testing.assert_allclose(rows[:, 1], walkers)
    np.testing.assert_allclose(rows[:, 2], d.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "HILLS")[:, 1], d[1:].reshape(-1), rtol=1e-12)


def test_a_walker_that_starts_outside_the_grid_is_lost(tmp_path):
    """The others start without it, with a row each."""
    metad = "METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=1 GRID_MIN=0 GRID_MAX=1"
    lines = [CV[0], "w: EXTRACV NAME=walker", metad, "PRINT ARG=w,d FILE=COLVAR"]
    start = X.repeat(3, 1, 1)
    start[1, 0] -= 50.0
    with potential(lines, tmp_path) as bias:
        kernel = kernel_of(bias)
        with pytest.warns(UserWarning, match="walker 1 left the grid"):
            state, lost = kernel.init(start), []
            for _ in range(2):
                kernel, state, _ = survive(kernel, state, Noise(1), lost.append)
    assert [error.walkers for error in lost] == [[1]] and state.walkers.tolist() == [0, 2]
    assert np.loadtxt(tmp_path / "COLVAR")[:, :2].tolist() == [
        [0.001 * step, walker] for step in range(3) for walker in (0, 2)
    ]
    assert len(np.loadtxt(tmp_path / "HILLS")) == 4


def test_variables_of_torch(tmp_path):
    lines = ["METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=2", *AVERAGES[:3], "PRINT ARG=d FILE=COLVAR"]
    cv = Distance(SYSTEM, [0, 1], name="d")
    bias = PlumedCVPotential(cv, lines, kT=KT, timestep=units.fs, directory=tmp_path / "ours")
    with bias:
        frames = walk(bias, 1, 12)
    reference = drive(tmp_path / "driver", [CV[0], *lines], frames[:, 0])
    for name in ("COLVAR", "HILLS", "fes"):
        ours, theirs = (np.loadtxt(folder / name) for folder in (tmp_path / "ours", reference))
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_steps_by_hand(tmp_path):
    """Without `begin` the start is where the bias was evaluated first, or an update says so."""
    lines = [*CV, *LEARNING["METAD, adaptive"], PRINT]
    frames = X + 0.1 * torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    reference = drive(tmp_path / "driver", lines, frames)
    evaluated, told = (potential(lines, tmp_path / name) for name in ("evaluated", "told"))
    for step, x in enumerate(frames):
        evaluated(x)
        if step:
            evaluated.update(x, step)
        told.update(x, step)
    for bias, name in ((evaluated, "evaluated"), (told, "told")):
        bias.finalize()
        check_same_text(tmp_path / name, reference)


def test_start_that_nobody_knows(tmp_path):
    """No row is invented for it, and no hill is lost where a step without a row can take it."""
    lines = [CV[0], "METAD ARG=d SIGMA=0.05 HEIGHT=1 PACE=1", "PRINT ARG=d FILE=COLVAR STRIDE=2"]
    with potential(lines, tmp_path) as bias:
        for step in range(1, 7):
            bias.update(X * (1 + 0.1 * step), step)
    assert np.loadtxt(tmp_path / "COLVAR")[:, 0] == pytest.approx([0.002, 0.004, 0.006])
    assert len(np.loadtxt(tmp_path / "HILLS")) == 6


def test_plain_ase_dynamics(tmp_path):
    lines = [*CV, *LEARNING["EDS"], *AVERAGES[:3], PRINT]
    bias = potential(lines, tmp_path / "ours")
    atoms = SYSTEM.to_atoms(X.numpy())
    atoms.calc = ScoreCalculator(Harmonic(1.0, centre=X, system=SYSTEM), bias=bias)
    words = {"temperature_K": 300, "friction": 0.1, "fixcm": False}
    dyn = Langevin(atoms, 1 * units.fs, rng=np.random.RandomState(0), **words)
    dyn.attach(bias.observer(dyn))
    frames = []
    dyn.attach(lambda: frames.append(atoms.positions.copy()))
    dyn.run(8)
    dyn.run(4)
    bias.finalize()
    check_same_text(tmp_path / "ours", drive(tmp_path / "driver", lines, frames))


def test_evaluations_between_steps_leave_no_trace(tmp_path):
    """Where PLUMED writes as it evaluates, plain dynamics evaluates once; differences do not."""
    lines = [*CV, *LEARNING["schedule"], *LEARNING["METAD"], PRINT]
    bias = potential(lines, tmp_path / "ours")
    kernel = Metropolis(kernel_of(bias))
    states = [kernel.init(X.clone())]
    for state, _ in run(kernel, states[0], 12, noise=Noise(2)):
        bias(state.x * 1.3), bias.describe(state.x)
        states.append(state)
    bias.finalize()
    reference = drive(tmp_path / "driver", lines, torch.stack([s.x for s in states]))
    check_same_text(tmp_path / "ours", reference)


@pytest.mark.parametrize(
    "line, name",
    [
        (
            "f: FISST ARG=d MIN_FORCE=-1 MAX_FORCE=1 PERIOD=9 NINTERPOLATE=31 KBT=2.49 CENTER=0.3 "
            "OUT_RESTART=r OUT_OBSERVABLE=o OBSERVABLE_FREQ=9",
            "FISST",
        ),
        ("a: ABMD ARG=d TO=1 KAPPA=1", "ABMD"),
    ],
)
def test_actions_that_learn_when_evaluated_say_so(line, name, tmp_path):
    with pytest.warns(UserWarning, match=f"{name}.* learn at every evaluation"):
        bias = potential([*CV, line, PRINT], tmp_path / "ours")
    frames = walk(bias, 1, 12)
    bias.finalize()
    check_same_text(tmp_path / "ours", drive(tmp_path / "driver", [*CV, line, PRINT], frames[:, 0]))


# ---------------------------------------------------------------------- the end


def driven(folder, steps=5):
    bias = potential([*CV, *AVERAGES[:3]], folder)
    walk(bias, 1, steps)
    return bias


def test_final_jobs_are_run_once(tmp_path):
    driven(tmp_path / "a").finalize()
    with driven(tmp_path / "b") as bias:
        bias.finish()
        assert (tmp_path / "b" / "fes").is_file() and torch.isfinite(bias(X).energy)
    bias.finalize()
    bias = driven(tmp_path / "c")
    del bias
    gc.collect()
    for name in "abc":
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["fes", "plumed.log"]
    assert len({(tmp_path / name / "fes").read_text() for name in "abc"}) == 1


def test_nothing_was_done(tmp_path):
    bias = potential([*CV, *AVERAGES[:3]], tmp_path)
    bias(X)
    bias.finalize()
    assert [p.name for p in tmp_path.iterdir()] == ["plumed.log"]


def test_an_error_has_the_first_word(tmp_path):
    with pytest.raises(ZeroDivisionError), driven(tmp_path):
        1 / 0  # noqa: B018
    assert (tmp_path / "fes").is_file()


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_end_of_python(end, tmp_path):
    code = f"""
        import sys
        from diffmd_ase.noise import Noise
        from diffmd_ase.sampling.run import run
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from four_atoms import X, bias, kernel_of
        kept = bias({[*CV, *AVERAGES[:3]]}, {str(tmp_path)!r})
        list(run(kernel_of(kept), X, 5, noise=Noise(1)))
        {end}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert (tmp_path / "fes").is_file()


def test_simulate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [*CV, *LEARNING["METAD"], *AVERAGES, PRINT]
    bias = potential(lines, tmp_path / "ours")
    info = RunInfo(seed=1, kT=KT, h=2e-2, kinetics_valid=False)
    simulate(kernel_of(bias), SYSTEM, X[None], 12, files=Files("md"), info=info, every=1)
    from diffmd_ase.io.trajectory import Trajectory

    frames = Trajectory("md.h5").positions[:, 0]
    # frames are float32: what is printed with six digits after the point, not what has all of them
    reference = drive(tmp_path / "driver", lines, frames)
    for name in ("COLVAR", "means", "fes"):
        ours, theirs = (np.loadtxt(folder / name) for folder in (tmp_path / "ours", reference))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    bias.finalize()


def test_driver_ends_as_plumed_driver(tmp_path):
    lines = [*CV, *AVERAGES]
    frames = X + 0.1 * torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1)).double()
    with Driver(4, lines, timestep=units.fs, directory=_made(tmp_path / "ours")) as driver:
        for step, x in enumerate(frames):
            driver.evaluate(x.numpy(), step=step)
            driver.update()
    check_same_text(tmp_path / "ours", drive(tmp_path / "driver", lines, frames))


def _made(folder):
    folder.mkdir()
    return folder


def test_a_bias_that_grows_beside_committor(tmp_path):
    """The energy of a state is that after the hill, as without COMMITTOR."""
    lines = [*CV, *LEARNING["METAD, pace 1"], *LEARNING["stop"], PRINT]
    bias = potential(lines, tmp_path / "ours")
    kernel, frames = kernel_of(bias), [X.clone()]
    model = Harmonic(0.5, centre=X, system=SYSTEM)
    for state, _ in run(kernel, X.clone(), 8, noise=Noise(1)):
        frames.append(state.x)
        exact = model(state.x).energy + bias(state.x).energy
        torch.testing.assert_close(state.energy, exact, rtol=0, atol=1e-12)
    assert bias(frames[-1]).energy > 0.01
    bias.finalize()
    check_same_text(tmp_path / "ours", drive(tmp_path / "driver", lines, torch.stack(frames)))
