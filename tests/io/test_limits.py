"""Sizes are compared with memory, and only plain files are opened."""

import os
import sys

import pytest

from diffmd_ase.io import limits
from diffmd_ase.io.limits import (
    available_memory,
    check_declared,
    check_memory,
    check_plain_file,
)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is that of Linux")
def test_memory_that_is_there():
    room = available_memory()
    assert 10_000_000 < room < 1 << 50
    check_memory(room / 2, "half of it", "nothing")
    with pytest.raises(ValueError, match=r"a big thing would need .* GB .* are there: make it"):
        check_memory(room * 2 + (1 << 29), "a big thing", "make it smaller")
    with pytest.raises(ValueError, match="1e\\+21 GB"):
        check_memory(1e30, "a batch", "fewer")


def test_small_things_are_never_refused(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 0)
    check_memory(1e6, "a small thing", "nothing")
    with pytest.raises(ValueError, match="0 GB are there"):
        check_memory(1e9, "a thing", "nothing")
    monkeypatch.setattr(limits, "available_memory", lambda: None)  # nobody knows
    check_memory(1e30, "a thing", "nothing")


def test_what_is_declared_must_be_stored():
    check_declared(1e12, 1 << 34, "a set that compresses 58-fold")
    check_declared(1e6, 0, "a small set of zeros")
    with pytest.raises(ValueError, match=r"a set declares 3 GB and holds 3 MB.*hostile"):
        check_declared(3e9, 3_000_000, "a set")


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders")
def test_pipes_devices_and_loops(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    check_plain_file(tmp_path)
    check_plain_file(tmp_path / "absent")
    for path in (tmp_path / "pipe", type(tmp_path)("/dev/zero")):
        with pytest.raises(ValueError, match="pipe or a device"):
            check_plain_file(path)
    with pytest.raises(ValueError, match="cannot be looked at"):
        check_plain_file(tmp_path / ("x" * 5000))
