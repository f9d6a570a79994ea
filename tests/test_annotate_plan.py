"""A dry run: what a job would be, and that nothing is left of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from annotate_jobs import edit_data, write_data
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core.annotate import AnnotateConfig, plan, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), image_size=28)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> AnnotateConfig:
    write_data(tmp_path, [1, 2, 3] * 4)
    return AnnotateConfig(
        tmp_path / "data.json",
        tmp_path / "images",
        str(checkpoint),
        tmp_path / "store",
        device="cpu",
        batch_images=3,
        dry_run=True,
    )


def test_everything_is_counted_and_nothing_written(job: AnnotateConfig) -> None:
    (job.images / "004.png").unlink()
    (job.images / "007.png").write_bytes(b"torn")
    edit_data(job, lambda samples: samples[0]["conversations"].pop())
    edit_data(
        job,
        lambda samples: samples.append({"id": "out", "image": "/etc/hostname", "conversations": samples[1]["conversations"]}),
    )
    told = Told()
    made = run(job, told)
    found = made.results["plan"]
    assert not job.out.exists()
    # The first sample lost its answer; "out" has two questions.
    assert (found["questions"], found["pictures"], found["bad_records"]) == (23 + 2, 12, 1)
    assert [name.rpartition(" ")[2].rpartition("/")[2] for name in found["missing"][:1]] == ["004.png"]
    assert len(found["missing"]) == 2
    assert "/etc/hostname" in found["missing"][1]
    assert (found["decoded"], len(found["broken"])) == (10, 1)
    assert "007.png" in found["broken"][0]
    assert made.counts == {"ok": 25, "failed": 4, "skipped": 0}
    assert found["probed_questions"] > 0
    assert found["seconds"] == pytest.approx(found["seconds_per_question"] * 25)
    assert any("004.png" in line for line in told.notes)


def test_the_size_is_that_of_a_real_store(job: AnnotateConfig, tmp_path: Path) -> None:
    write_data(tmp_path, [12] * 50)
    config = replace(job, policy="center_crop", batch_images=16)
    guess = run(config, Told()).results["plan"]["bytes"]
    run(replace(config, dry_run=False), Told())
    real = sum(path.stat().st_blocks * 512 for path in config.out.glob("data.mdb"))
    assert guess == pytest.approx(real, rel=0.25)


def test_a_sample_is_spread_over_the_data() -> None:
    assert plan._evenly([1, 2, 3], 5) == [1, 2, 3]
    assert plan._evenly(range(1000), 4) == [0, 250, 500, 750]
