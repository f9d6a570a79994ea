"""Every durable write of every stage goes wrong once in each way; the same command then ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad.world import World, make_world
from faults import DIED, STAGES, Stage, storm, warm


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("faults")
    world = make_world(root / "world")
    warm(world, root / "warm")
    return world


COUNTED: dict[str, int] = {}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_durable_write_may_fail(stage: Stage, world: World, tmp_path: Path) -> None:
    results = storm(stage, world, tmp_path / "work")
    COUNTED[stage.name] = len(results)
    for result in results:
        assert result.code in ({DIED} if result.fault == "kill" else {0, 3}), result
        assert "Traceback" not in result.said, result
        if result.code == 3:
            assert result.said.splitlines()[-1].startswith("cos: "), result
            assert not [name for name in result.kept if name.endswith(".tmp")], f"a full disk leaves no scraps: {result}"
        assert not result.lost, result
        assert result.again == 0, result
        assert result.same, result


def test_they_were_many() -> None:
    if set(COUNTED) == {stage.name for stage in STAGES}:
        assert sum(COUNTED.values()) >= 100, COUNTED
