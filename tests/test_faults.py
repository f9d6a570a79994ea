"""Every durable write of every stage goes wrong once in each way; the same command then ends as if nothing had been.

Of training and the stages that draw, whose runs are dear, some of the writes; `make faults` takes them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from bad import recorded
from bad.world import World, make_world
from faults.disk import FAULTS
from faults.stages import STAGES
from faults.storm import Result, process_without_torch, storm_of, summary, warm


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("faults") / "world")


@pytest.fixture(scope="module")
def light(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with process_without_torch(world, tmp_path_factory.mktemp("warm")) as process:
        yield process


def stormed(number: int, world: World, folder: Path, request: pytest.FixtureRequest) -> tuple[list[Result], int]:
    if not STAGES[number].torch:
        return request.getfixturevalue("light").submit(storm_of, number, world, folder / "work").result()
    warm(world, folder / "warm", [STAGES[number]])
    return storm_of(number, world, folder / "work")


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=s.name, marks=[pytest.mark.slow] if s.name == "train" else []) for n, s in enumerate(STAGES)],
)
def test_every_durable_write_may_fail(number: int, world: World, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    stage = STAGES[number]
    results, possible = stormed(number, world, tmp_path, request)
    assert len(results) == possible or stage.dear
    rows = [row for row in recorded.read(recorded.FAULTS, recorded.FaultRow) if row.stage == stage.name]
    assert sum(int(row.times) for row in rows) == possible, "`make faults` records the faults anew"
    for result in results:
        assert result.wrong(stage) is None, result
        if stage.name == "train":
            goes_on(result)
    if not stage.dear:
        assert summary(stage, results) == rows


def goes_on(result: Result) -> None:
    """From the newest checkpoint that is whole, and from no other; a finished run has nothing to do."""
    whole = max((name.split("/")[-2] for name in result.kept if name.endswith("/whole.json")), default=None)
    if "out/manifest.json" in result.kept:
        assert "nothing to do" in result.then, result
    else:
        told = f"going on from step {whole.removeprefix('checkpoint-')}" if whole else "going on"
        assert (told in result.then) == (whole is not None), result


def test_every_stage_is_recorded() -> None:
    rows = recorded.read(recorded.FAULTS, recorded.FaultRow)
    assert list(dict.fromkeys(row.stage for row in rows)) == [stage.name for stage in STAGES]
    assert {row.fault for row in rows} == set(FAULTS)
