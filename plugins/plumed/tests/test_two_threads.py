"""PLUMED in several threads: a process has one working directory, an instance one set of arrays."""

import sys
import threading

import numpy as np
import pytest
import torch
from diffmd_plumed import PlumedPotential, library

from diffmd_ase.system import System

ARGON = System(np.array([18, 18]), np.array([39.9, 39.9]))
INPUT = ["UNITS LENGTH=A ENERGY=eV", "d: DISTANCE ATOMS=1,2", "RESTRAINT ARG=d AT=3.0 KAPPA=2.0"]
INPUT += ["PRINT ARG=d FILE=COLVAR"]


@pytest.fixture
def often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("shared", [True, False], ids=["one potential", "one each"])
def test_each_thread_has_its_own_energy(tmp_path, often, shared):
    folders = [tmp_path if shared else tmp_path / str(n) for n in range(4)]
    potentials = []
    for folder in folders:
        folder.mkdir(exist_ok=True)
        if not shared or not potentials:
            one = PlumedPotential(ARGON, INPUT, kT=0.02, timestep=1.0, directory=folder)
        potentials.append(one)
    errors, start = [], threading.Barrier(4)

    def work(n):
        distance = 2.5 + 0.3 * n
        x = torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64)
        try:
            start.wait()
            for _ in range(60):
                value = potentials[n](x)
                assert float(value.energy) == pytest.approx((distance - 3.0) ** 2, abs=1e-6)
                assert float(value.forces[1, 0]) == pytest.approx(-2 * (distance - 3.0), abs=1e-6)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for potential in potentials[: 1 if shared else 4]:
        potential.finalize()
    assert not errors, errors[0]


def test_names_of_commands_stay_where_they_are(tmp_path, monkeypatch):
    """The binding drops the bytes of a name while it uses them, unless somebody else has them."""
    told = []

    def encode(name, *_, **__):
        told.append(str(name))
        return name._kept

    monkeypatch.setattr(type(library.command("init")), "encode", encode)
    potential = PlumedPotential(ARGON, INPUT, kT=0.02, timestep=1.0, directory=tmp_path)
    potential(torch.tensor([[0.0, 0, 0], [2.5, 0, 0]], dtype=torch.float64))
    potential.finalize()
    assert "setPlumedDat" in told and "init" in told
    assert library.command("init") == "init" and library.command("init") is library.command("init")
