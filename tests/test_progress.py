"""Progress: bars on a terminal, lines in a log, nothing where it is not wanted."""

import io

import pytest
from rich.console import Console

from diffmd_ase.progress import Bars


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def test_a_log_has_a_line_at_the_end():
    """Short work is not told of step by step."""
    log = console(False)
    with Bars(console=log) as report:
        for step in range(1, 101):
            report("run", step / 100, f"step {step}")
        report("run", 1.0)  # the same again
        assert log.file.getvalue() == "run 100%  step 100\n"
    assert log.file.getvalue() == "run 100%  step 100\n"


def test_a_log_has_lines_at_intervals(monkeypatch):
    """Of each part for itself; the last note stays until there is another."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = console(False)
    with Bars(console=log, every=30) as report:
        for second in range(100):
            clock[0] = float(second)
            report("fine", second / 200, f"step {second}" if second % 10 == 0 else None)
            if second > 50:
                report("broad", second / 400, "")
    assert log.file.getvalue().splitlines() == [
        "fine  15%  step 30",
        "fine  30%  step 60",
        "broad  20%",
        "fine  45%  step 90",
        "fine  50%  step 90",
        "broad  25%",
    ]


def test_a_log_tells_where_it_stopped():
    log = console(False)
    with pytest.raises(KeyboardInterrupt), Bars(console=log) as report:
        report("run", 0.25, "step 25")
        raise KeyboardInterrupt
    assert log.file.getvalue() == "run  25%  step 25\n"


def test_a_terminal_has_bars():
    screen = console(True)
    with Bars(console=screen) as report:
        report("fine", 0.5, "step 3")
        report("broad", 1.0, "step 9")
    text = screen.file.getvalue()
    assert "\x1b[" in text and "━" in text
    assert all(word in text for word in ("fine", " 50 %", "step 3", "broad", "100 %", "step 9"))


@pytest.mark.parametrize("terminal", [True, False])
def test_silent(terminal):
    where = console(terminal)
    with Bars(False, console=where) as report:
        report("fine", 1.0, "step 3")
    with Bars(console=where):  # nothing was reported
        pass
    assert where.file.getvalue() == ""
