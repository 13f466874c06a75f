"""Child processes side by side: their output, their failures, their ends."""

import os
import sys
import time

import pytest

from diffmd_ase.processes import Command, run_side_by_side


def python(code, name="child", **more):
    return Command([sys.executable, "-c", code], name, **more)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_reports_are_passed_on_in_order_and_all():
    heard = []
    code = "import json\nfor n in range(2000): print(json.dumps([{0}, n]), flush=True)"
    run_side_by_side([python(code.format(k), report=heard.append) for k in range(3)], at_once=2)
    for k in range(3):
        assert [n for which, n in heard if which == k] == list(range(2000))


def test_each_has_one_thread():
    heard = []
    code = "import os; print(os.environ['OMP_NUM_THREADS'], flush=True)"
    run_side_by_side([python(code, report=heard.append)])
    assert heard == [1]


def test_the_first_failure_ends_all_and_says_why():
    pids = []
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    # not before the other has said who it is
    fails = "import sys, time; time.sleep(1); print('too bad', file=sys.stderr); sys.exit(3)"
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^second stopped with code 3: too bad$"):
        run_side_by_side(
            [python(waits, report=pids.append), python(fails, "second", report=pids.append)]
        )
    assert time.monotonic() - begun < 30
    [pid] = pids
    assert not alive(pid)


def test_a_failure_without_words():
    with pytest.raises(RuntimeError, match="child stopped with code 5: no message"):
        run_side_by_side([python("raise SystemExit(5)", report=print)])


def test_output_goes_where_ours_goes(capfd):
    code = "import sys; print('a result'); print('a warning', file=sys.stderr)"
    run_side_by_side([python(code)])
    assert capfd.readouterr() == ("a result\n", "a warning\n")
    run_side_by_side([python(code, quiet=True)])
    assert capfd.readouterr() == ("", "a warning\n")
    with pytest.raises(RuntimeError, match="child stopped with code 2: see above"):
        run_side_by_side([python("raise SystemExit(2)")])


def test_what_is_no_report_neither_stops_nor_blocks():
    """More than a pipe holds, of a library that talks; it is told if the process fails."""
    heard = []
    talk = "for n in range(20_000): print('not a report', n)\n"
    run_side_by_side([python(talk + "print('{}')", report=heard.append)])
    assert heard == [{}]
    with pytest.raises(RuntimeError, match="not a report 19999"):
        run_side_by_side([python(talk + "raise SystemExit(1)", report=heard.append)])


def test_an_error_of_a_report_is_ours():
    class Stopped(Exception):
        pass

    pids = []

    def stop(pid):
        pids.append(pid)
        raise Stopped

    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(Stopped):
        run_side_by_side([python(waits, report=stop)])
    assert not alive(pids[0])


def test_at_once_bounds_how_many_run():
    marks = []
    code = "import json, time\n" + "\n".join(
        f"print(json.dumps(['{sign}', time.monotonic()]), flush=True); time.sleep({wait})"
        for sign, wait in (("+", 0.3), ("-", 0))
    )
    run_side_by_side([python(code, report=marks.append) for _ in range(4)], at_once=2)
    running = most = 0
    for sign, _ in sorted(marks, key=lambda mark: mark[1]):
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert len(marks) == 8 and most == 2
