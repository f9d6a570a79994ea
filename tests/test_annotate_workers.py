"""Jobs in parts and by several workers, and what is left of them when they are killed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from annotate_jobs import exported, failures, kill, write_data
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core.annotate import AnnotateConfig, run
from cos_core.errors import FailuresError, InputError, LockedError
from cos_core.files import manifest
from cos_core.files.locks import FileLock
from cos_core.files.shard import Shard
from cos_core.runners import RunnerConfig
from cos_core.store.merge import merge

TWO = RunnerConfig(workers=2)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def job(tmp_path: Path) -> AnnotateConfig:
    """A hundred pictures, one of them broken, and a policy that runs no model."""
    write_data(tmp_path, [1, 2, 3, 1] * 25)
    (tmp_path / "images" / "041.png").write_bytes(b"torn")
    return AnnotateConfig(
        tmp_path / "data.json", tmp_path / "images", "none", tmp_path / "whole", policy="random", batch_images=3, device="cpu"
    )


def beside(config: AnnotateConfig, name: str, **changes: object) -> AnnotateConfig:
    return replace(config, out=config.out.with_name(name), **changes)  # type: ignore[arg-type]


class TestShards:
    def test_text(self) -> None:
        assert Shard.parse("2/8") == Shard(2, 8)
        assert str(Shard(2, 8)) == "2/8"
        assert [Shard(2, 3).has(number) for number in range(5)] == [False, True, False, False, True]
        for wrong in ("0/2", "3/2", "2", "a/b", "1/", "-1/2", "1/2/3"):
            with pytest.raises(InputError, match="i/n"):
                Shard.parse(wrong)

    def test_all_shards_together_are_the_whole(self, job: AnnotateConfig) -> None:
        whole = run(job, Told())
        parts = [beside(job, f"part{i}", shard=Shard(i, 3)) for i in (1, 2, 3)]
        made = [run(part, Told()) for part in parts]
        assert {name: sum(m.counts[name] for m in made) for name in whole.counts} == whole.counts
        merged = beside(job, "merged")
        merge([part.out for part in reversed(parts)], merged.out, Told())
        assert exported(merged) == exported(job)
        assert failures(merged) == failures(job)

    def test_bad_records_count_once(self, job: AnnotateConfig) -> None:
        lines = ['{"torn', '{"id": "a", "dataset": "d", "image": "000.png", "question": "q", "answers": ["x"]}']
        job.data.write_text("\n".join(lines), encoding="utf-8")
        made = [run(beside(job, f"part{i}", shard=Shard(i, 2)), Told()).counts["failed"] for i in (1, 2)]
        assert made == [1, 0]

    def test_a_shard_may_have_several_workers(self, job: AnnotateConfig) -> None:
        part, alone = beside(job, "part", shard=Shard(2, 3), scale=TWO), beside(job, "alone", shard=Shard(2, 3))
        assert run(part, Told()).counts == run(alone, Told()).counts
        assert exported(part) == exported(alone)


class TestWorkers:
    def test_several_processes_export_what_one_does(self, job: AnnotateConfig) -> None:
        whole = run(job, Told())
        several, told = beside(job, "several", scale=TWO), Told()
        made = run(several, told)
        assert (made.counts, made.fingerprint) == (whole.counts, whole.fingerprint)
        assert exported(several) == exported(job)
        assert failures(several) == failures(job)
        assert told.steps[-1] == (175, 175)
        assert manifest.read(several.out) == made
        again = run(replace(several, scale=RunnerConfig(workers=3)), Told())
        assert again.counts == {**whole.counts, "new": 0}

    def test_errors_and_failures_of_workers_are_the_jobs(self, job: AnnotateConfig) -> None:
        with pytest.raises(InputError, match="'absent'"):
            run(beside(job, "nothing", scale=TWO, policy="absent"), Told())
        strict = beside(job, "strict", scale=TWO, max_failures=1)
        with pytest.raises(FailuresError, match=r"\b2\b.*\b1\b"):
            run(strict, Told())
        assert manifest.read(strict.out).status == "failed"
        assert failures(strict)

    def test_other_settings_are_refused_before_anything_is_done(self, job: AnnotateConfig) -> None:
        run(replace(job, limit=3), Told())
        with pytest.raises(InputError, match="other settings"):
            run(replace(job, scale=TWO, seed=9), Told())
        with FileLock(job.out / "writer.lock"), pytest.raises(LockedError):
            run(replace(job, scale=TWO), Told())

    @pytest.mark.slow
    def test_killed_at_ten_moments(self, job: AnnotateConfig) -> None:
        run(job, Told())
        killed = beside(job, "killed", scale=TWO)
        moments = sorted(random.Random(5).sample(range(1, 170), 10))
        for number, moment in enumerate(moments):
            # Every third time a worker dies instead of the job, which goes on with another.
            assert kill(killed, moment, a_worker=number % 3 == 2)
        made = run(killed, Told())
        assert made.counts["ok"] == manifest.read(job.out).counts["ok"]
        assert exported(killed) == exported(job)
        assert failures(killed) == failures(job)

    @pytest.mark.slow
    def test_killed_with_a_model_and_gone_on_alone(self, job: AnnotateConfig, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path / "model", image_size=28)
        settings = {"model": str(checkpoint), "policy": "from_single_question", "keep_heat": True, "limit": 60}
        whole, killed = beside(job, "first", **settings), beside(job, "second", scale=TWO, **settings)
        run(whole, Told())
        assert kill(killed, 20, a_worker=False)
        assert kill(killed, 35, a_worker=True)
        run(replace(killed, scale=RunnerConfig()), Told())
        assert exported(killed) == exported(whole)
