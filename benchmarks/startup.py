"""CPU time of starting `cos`: --help, and one press of TAB, also over a store of many ids. Ratios to `python -c pass`.

    python benchmarks/startup.py [IDS] [FOLDER]     (1 million, a temporary folder)

The best of eleven runs each, in turns, user and system time of the whole process as the kernel counts it. A store that is in
FOLDER already is used again. Ends with 1 when a goal is missed.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cos_core.geometry import Box
from cos_core.store.annotations import Store
from cos_core.types import Annotation

HELP, TAB = 0.250, 0.150
"""Goals, in CPU seconds."""
ROUNDS = 11
MARK = "5" * 16
COS = (sys.executable, "-m", "cos_cli")


def annotations(count: int) -> Iterator[Annotation]:
    for number in range(count):
        yield Annotation(f"{number:012d}#q0", Box(0.1, 0.2, 0.5, 0.6), 1.0, "from_single_question", MARK, (3,))


def seconds(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """(CPU seconds of the command's process, what it printed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def tab(line: str) -> tuple[str, ...]:
    return (*COS, "__complete", "bash", line, " \t\n\"'><=;|&(:")


def main() -> int:
    ids = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else scratch)
        if not (folder / "store").is_dir():
            with Store.create_or_resume(folder / "store", MARK, {}) as store:
                store.put_many(annotations(ids))
        overlay = "cos visualize overlay --store store --example"
        cases: list[tuple[str, Sequence[str], float, str]] = [
            ("python -c pass", (sys.executable, "-c", "pass"), 9.0, ""),
            ("import typer", (sys.executable, "-c", "import typer"), 9.0, ""),
            ("cos --help", (*COS, "--help"), HELP, "annotate"),
            ("cos <TAB>", tab("cos "), TAB, "annotate"),
            ("cos eval <TAB>", tab("cos eval "), TAB, "pope"),
            ("cos annotate --<TAB>", tab("cos annotate --"), TAB, "--images"),
            ("... --store STORE --example <TAB>", tab(f"{overlay} "), TAB, "00000"),
            ("... --example 0000004567<TAB>", tab(f"{overlay} 0000004567"), TAB, "000000456789#q0"),
        ]
        best = dict.fromkeys((name for name, *_ in cases), float("inf"))
        for _ in range(ROUNDS):
            for name, command, _, expected in cases:
                spent, said = seconds(command, folder)
                if expected not in said:
                    print(f"{name} did not answer {expected!r}: {said[:200]}", file=sys.stderr)
                    return 1
                best[name] = min(best[name], spent)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; a store of {ids:,} ids\n")
    print("| | CPU ms | x python -c pass | goal, ms |\n|---|---|---|---|")
    for name, _, goal, _ in cases:
        ratio = best[name] / best["python -c pass"]
        print(f"| `{name}` | {1000 * best[name]:.0f} | {ratio:.1f} | {f'{1000 * goal:.0f}' if goal < 9 else ''} |")
    return int(any(best[name] > goal for name, _, goal, _ in cases))


if __name__ == "__main__":
    sys.exit(main())
