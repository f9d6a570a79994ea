"""Bad inputs: one `Case` for each thing that can be wrong with what a command is given, and what must come of it.

A module a family; `cases()` has them all. `world` makes the good things that stand beside the bad one, `run` runs a case and
watches what it touches. tests/test_hostile_inputs.py asserts, `make faults` writes what came of each into inputs.tsv (`recorded`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bad.world import Case


def cases() -> list[Case]:
    from bad import answers, benchmark_files, checkpoints, data, pictures, regions, settings, stores

    families = (data, answers, pictures, stores, regions, settings, benchmark_files, checkpoints)
    return [case for family in families for case in family.CASES]
