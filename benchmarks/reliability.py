"""What kills, damage and full disks do to runs and their files: what is lost, what is silent.

Each part prints a table by kind of run or of file. Results are kept in ``--folder`` line by line:
the same command again does only what is missing, so that long parts may be done in pieces
(``--seconds``). Linux only: work is done in forked processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import Counter
from pathlib import Path

import torch
from torture import damage, disk, kills, memory, walkers
from torture.kinds import kinds
from torture.sandbox import Record

PARTS = ("kills", "signals", "damage", "disk", "NaN", "determinism", "memory")
Table = list[list[str]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="+", help="of runs (default: all)")
    parser.add_argument("--kills", type=int, default=200, help="of all kinds of runs together")
    parser.add_argument("--signals", type=int, default=20, help="for each kind of run")
    parser.add_argument("--walkers", type=int, default=64, help="of runs that are sent signals")
    parser.add_argument("--flips", type=int, default=1000, help="in our own formats, and in others")
    parser.add_argument("--cuts", type=int, default=300, help="likewise")
    parser.add_argument("--writes", type=int, default=100, help="of a run that fail, one by one")
    parser.add_argument("--poisoned", type=int, default=20, help="walkers, for each kernel")
    parser.add_argument("--cheap-steps", type=int, default=1_000_000, help="of springs")
    parser.add_argument("--learned-steps", type=int, default=100_000, help="of a learned energy")
    parser.add_argument("--pieces", type=int, default=1, help="of the runs for memory: restarts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="then no new result is begun")
    parser.add_argument("--folder", type=Path, default=Path("reliability"))
    return parser.parse_args()


def measure(args: argparse.Namespace, record: Record) -> None:
    """What is asked for and not there yet."""
    every = kinds()
    chosen = {name: kind for name, kind in every.items() if name in (args.kinds or every)}
    if not _plumed():
        chosen = {name: kind for name, kind in chosen.items() if "PLUMED" not in name}
    if "kills" in args.only:
        for name, kind in chosen.items():
            kills.kill_runs(name, kind, -(-args.kills // len(chosen)), args.seed, record)
    if "signals" in args.only:
        kills.signal_runs(args.walkers, args.signals, args.seed, record)
    if "damage" in args.only:
        for names in (damage.OURS, damage.FOREIGN):
            counts = {"flips": -(-args.flips // len(names)), "cuts": -(-args.cuts // len(names))}
            damage.damage_files(set(names), counts, args.seed, record)
    if "disk" in args.only:
        short = kinds(0.06)
        for name in ("plain", "metadynamics, shared", "train"):
            if name in chosen:
                disk.full_disk(name, short[name], args.writes, record)
                disk.clock_back(name, short[name], record)
        disk.read_only(short["plain"], record)
    if "NaN" in args.only:
        walkers.nan_walkers(args.poisoned, args.seed, record)
    if "determinism" in args.only:
        walkers.determinism(record)
    if "memory" in args.only:
        steps = {"springs": args.cheap_steps, "learned": args.learned_steps}
        memory.memory(steps, args.pieces, args.folder.absolute(), record)


def _plumed() -> bool:
    try:
        import diffmd_plumed.library as library

        library.new_instance(None).finalize()
    except ImportError:
        return False
    return True


# ------------------------------------------------------------------------- tables


def tables(record: Record) -> dict[str, Table]:
    """Rows of each table, its heads first, of all results there are."""
    made = {
        "Killed with -9 at random moments, then --restart": _kills(record),
        "SIGTERM and SIGINT at random moments": _signals(record),
        "One flipped bit, or cut off": _damage(record),
        "No room from the n-th write on": _disk(record),
        "Read-only folder; a clock that goes back": _folder(record),
        "NaN in one walker of six": _nan(record),
        "The same numbers again": _determinism(record),
        "Memory": _memory(record),
    }
    return {title: rows for title, rows in made.items() if len(rows) > 1}


def _names(record: Record, *parts: str) -> list[str]:
    return list(dict.fromkeys(row["what"] for part in parts for row in record.of(part)))


def _kills(record: Record) -> Table:
    table = [["run", "kills", "default checkpoints", "runs", "differ", "what"]]
    for name in _names(record, "kills"):
        rows = record.of("kills", name)
        wrong = [row for row in rows if row["wrong"]]
        default = sum(row["kills"] for row in rows if row["default"])
        table.append(
            [
                name,
                str(sum(row["kills"] for row in rows)),
                str(default),
                str(len(rows)),
                str(len(wrong)),
                _common(w for row in wrong for w in row["wrong"]),
            ]
        )
    return table


def _signals(record: Record) -> Table:
    table = [["run", "signals", "slowest exit, s", "differ or wrong code", "what"]]
    for name in _names(record, "signals"):
        rows = [row for row in record.of("signals", name) if row["sent"]]
        wrong = [row for row in rows if row["wrong"]]
        slowest = max((row["seconds"] for row in rows), default=0.0)
        table.append(
            [
                name,
                str(len(rows)),
                f"{slowest:.1f}",
                str(len(wrong)),
                _common(w for row in wrong for w in row["wrong"]),
            ]
        )
    return table


def _damage(record: Record) -> Table:
    heads = ["refused", "told", "same", "silent", "other"]
    table = [["file", "damage", "number", *heads, "silent by"]]
    for name in _names(record, "flips", "cuts"):
        for how in ("flips", "cuts"):
            rows = record.of(how, name)
            count = Counter(row["verdict"] for row in rows)
            others = sum(n for what, n in count.items() if what not in heads)
            silent = _common(row["said"] for row in rows if row["verdict"] == "silent")
            table.append(
                [
                    name,
                    how,
                    str(len(rows)),
                    *(str(count[h]) for h in heads[:-1]),
                    str(others),
                    silent,
                ]
            )
    return table


def _disk(record: Record) -> Table:
    table = [
        ["run", "writes", "tried", "crashes", "not told", "not resumed as uninterrupted", "what"]
    ]
    for name in _names(record, "disk"):
        rows = record.of("disk", name)
        wrong = [row for row in rows if row["wrong"]]
        table.append(
            [
                name,
                str(rows[0]["of"]),
                str(len(rows)),
                str(sum(r["crash"] for r in rows)),
                str(sum(not r["told"] for r in rows)),
                str(len(wrong)),
                _common(w for row in wrong for w in row["wrong"]),
            ]
        )
    return table


def _folder(record: Record) -> Table:
    rows = [(f"clock goes back, {r['what']}", r) for r in record.of("clock")]
    rows += [("read-only folder", row) for row in record.of("folder")]
    return [["what", "wrong"]] + [[name, ", ".join(r["wrong"]) or "nothing"] for name, r in rows]


def _nan(record: Record) -> Table:
    table = [
        [
            "kernel",
            "tried",
            "lost",
            "found later than in its step",
            "others not bitwise",
            "not written",
        ]
    ]
    for name in _names(record, "NaN"):
        rows = record.of("NaN", name)
        table.append(
            [
                name,
                str(len(rows)),
                str(sum(row["lost"] for row in rows)),
                str(sum(row["late"] > 0 for row in rows)),
                str(sum(not (row["bitwise"] and row["only"]) for row in rows)),
                str(sum(not row["kept"] for row in rows)),
            ]
        )
    return table


def _determinism(record: Record) -> Table:
    table = [
        [
            "potential, kernel",
            "same seed",
            "other seed",
            "alone and in a batch, Å",
            "1 and 2 threads, Å",
        ]
    ]
    for row in record.of("determinism"):
        table.append(
            [
                row["what"],
                "bitwise" if row["again"] else "differs",
                "differs" if row["other_seed"] else "the same",
                f"{row['alone']:.2g}",
                f"{row['threads']:.2g}",
            ]
        )
    return table


def _memory(record: Record) -> Table:
    table = [["potential", "steps", "processes", "kB for 1000 steps, each", "at the end, MB"]]
    for name in _names(record, "memory"):
        rows = record.of("memory", name)
        slopes = ", ".join(f"{row['slope']:.2f}" for row in rows)
        table.append(
            [
                name,
                f"{sum(row['steps'] for row in rows)}",
                str(len(rows)),
                slopes,
                f"{rows[-1]['last'] / 1000:.0f}",
            ]
        )
    return table


def _common(said) -> str:
    """The most frequent words, with their numbers."""
    return "; ".join(f"{what} ({n})" for what, n in Counter(said).most_common(3))


def markdown(made: dict[str, Table]) -> str:
    lines = [f"diffmd_ase on Python {platform.python_version()}, torch {torch.__version__}.", ""]
    for title, (heads, *rows) in made.items():
        lines += [f"## {title}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def failures(record: Record) -> int:
    """How much is not as it should be, in foreign text formats but for what nobody can see."""
    bad = sum(bool(row["wrong"]) for row in record.rows if "wrong" in row)
    bad += sum(row["seconds"] > 10 for row in record.of("signals"))
    bad += sum(row["crash"] or not row["told"] for row in record.of("disk"))
    for how in ("flips", "cuts"):
        for row in record.of(how):
            allowed = {"refused", "told", "same"}
            if row["what"] in damage.FOREIGN:
                allowed |= {"silent"}
            bad += row["verdict"] not in allowed
    bad += sum(
        not (r["bitwise"] and r["only"] and r["kept"]) or r["late"] > 0 for r in record.of("NaN")
    )
    bad += sum(not (r["again"] and r["other_seed"]) for r in record.of("determinism"))
    return bad + sum(row["slope"] > 1.0 for row in record.of("memory"))


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    record = Record(args.folder / "results.jsonl", args.seconds)
    measure(args, record)
    made = tables(record)
    text = markdown(made)
    (args.folder / "table.md").write_text(text)
    (args.folder / "table.json").write_text(json.dumps(made, indent=1, ensure_ascii=False))
    print(text)
    bad = failures(record)
    print(f"{bad} not as it should be" if bad else "all as it should be")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
