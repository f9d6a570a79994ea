"""The annotate stage: every policy, what fails and how, and a job that is killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from annotate_jobs import edit_data, exported, failures, stored, write_data
from PIL import Image
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core.annotate import AnnotateConfig, annotator, run
from cos_core.errors import FailuresError, InputError, LockedError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import Backbone, Relevance, SilentReporter
from cos_core.relevance import roi
from cos_core.store.annotations import Store
from cos_core.types import Regions


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), image_size=28)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> AnnotateConfig:
    """Three pictures with one, two and three questions."""
    write_data(tmp_path, [1, 2, 3])
    return AnnotateConfig(
        data=tmp_path / "data.json",
        images=tmp_path / "images",
        model=str(checkpoint),
        out=tmp_path / "store",
        device="cpu",
        dtype="float32",
    )


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same number of threads here and in processes started from here: it decides the last bits of a sum."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


IDS = ["s000#q0", "s001#q0", "s001#q1", "s002#q0", "s002#q1", "s002#q2"]


class TestPolicies:
    def test_single_question(self, job: AnnotateConfig) -> None:
        told = Told()
        made = run(job, told)
        found = stored(job)
        assert sorted(found) == IDS
        assert {a.policy for a in found.values()} == {"from_single_question"}
        assert {a.fingerprint for a in found.values()} == {made.fingerprint}
        assert [a.image for a in found.values()] == ["000.png", "001.png", "001.png", "002.png", "002.png", "002.png"]
        for annotation in found.values():
            assert annotation.box is not None
            assert annotation.score > 0
            assert annotation.regions_used
        assert made.counts == {"ok": 6, "failed": 0, "skipped": 0, "no_region": 0, "new": 6}
        assert made.results["rule"] == manifest.plain(roi.RoiRule("union", threshold=0.3))
        assert manifest.read(job.out) == made
        assert told.steps[-1] == (6, 6)

    def test_questions_share_one_region(self, job: AnnotateConfig) -> None:
        run(replace(job, policy="from_questions"), SilentReporter())
        found = stored(job)
        assert sorted(found) == IDS
        assert found["s002#q0"].box == found["s002#q1"].box == found["s002#q2"].box
        assert found["s000#q0"].box is not None

    def test_the_image_alone(self, job: AnnotateConfig) -> None:
        edit_data(job, lambda samples: samples[2]["conversations"][1].update(value="another answer"))
        run(replace(job, policy="from_image"), SilentReporter())
        first = exported(job)
        assert stored(job)["s001#q0"].box == stored(job)["s001#q1"].box
        edit_data(job, lambda samples: samples[2]["conversations"][1].update(value="yet another"))
        run(replace(job, policy="from_image", out=job.out.with_name("again")), SilentReporter())
        assert exported(replace(job, out=job.out.with_name("again"))) == first  # neither question nor answer matters

    @pytest.mark.parametrize("backbone", ["regions", "patches"])
    def test_backbones(self, job: AnnotateConfig, backbone: str) -> None:
        made = run(replace(job, backbone=backbone), SilentReporter())
        assert made.counts["ok"] + made.counts["no_region"] == 6
        assert made.results["rule"]["region"] == {"regions": "union", "patches": "component"}[backbone]

    def test_centre(self, job: AnnotateConfig) -> None:
        run(replace(job, policy="center_crop", model="no such model"), SilentReporter())
        assert {a.box for a in stored(job).values()} == {Box(0.25, 0.25, 0.75, 0.75)}

    def test_random_takes_a_window_by_seed_and_id(self, job: AnnotateConfig) -> None:
        from cos_core.detectors import grid

        config = replace(job, policy="random", model="no such model")
        run(config, SilentReporter())
        found = stored(config)
        windows = grid.build().detect(Image.new("RGB", (64, 64))).boxes
        assert found["s000#q0"].box == windows[found["s000#q0"].regions_used[0]]
        assert len({a.box for a in found.values()}) > 3
        other = replace(config, seed=1, out=job.out.with_name("other"))
        run(other, SilentReporter())
        assert {i: a.box for i, a in stored(other).items()} != {i: a.box for i, a in found.items()}
        few = replace(config, out=job.out.with_name("few"), limit=1)
        run(few, SilentReporter())
        assert [a.box for a in stored(few).values()] == [found["s000#q0"].box]

    def test_gold(self, job: AnnotateConfig) -> None:
        edit_data(job, lambda samples: samples[1].update(meta=[{"gold": [0.1, 0.2, 0.3, 0.4]}, {}]))
        made = run(replace(job, policy="gold", limit=3, max_failures=2), SilentReporter())
        assert stored(job)["s001#q0"].box == Box(0.1, 0.2, 0.3, 0.4)
        assert failures(job) == dict.fromkeys(("s000#q0", "s001#q1"), f"{job.data}:1: {annotator.NO_GOLD}")
        assert made.counts == {"ok": 1, "failed": 2, "skipped": 0, "no_region": 0, "new": 1}

    def test_none_has_nothing_to_annotate(self, job: AnnotateConfig) -> None:
        with pytest.raises(InputError, match="'none'"):
            run(replace(job, policy="none"), SilentReporter())
        assert not job.out.exists()


class TestWhatFails:
    def test_pictures_and_answers_that_cannot_be_used(self, job: AnnotateConfig) -> None:
        (job.images / "000.png").unlink()
        (job.images / "002.png").write_bytes((job.images / "002.png").read_bytes()[:90])
        with pytest.raises(FailuresError, match=r"\b4 of 6\b.*`cos store ls .* --failures`"):
            run(job, SilentReporter())
        made = run(replace(job, max_failures=4), SilentReporter())
        assert sorted(stored(job)) == ["s001#q0", "s001#q1"]
        why = failures(job)
        assert sorted(why) == ["s000#q0", "s002#q0", "s002#q1", "s002#q2"]
        assert why["s000#q0"].startswith(f"{job.data}:1: there is no image")
        assert "cannot be decoded" in why["s002#q1"]
        assert made.counts == {"ok": 2, "failed": 4, "skipped": 0, "no_region": 0, "new": 0}
        assert made.status == "complete"

    def test_failures_are_tried_again_and_nothing_else(self, job: AnnotateConfig) -> None:
        picture = job.images / "001.png"
        whole = picture.read_bytes()
        picture.write_bytes(whole[:90])
        run(job, SilentReporter())
        before = stored(job)
        picture.write_bytes(whole)
        made = run(job, SilentReporter())
        after = stored(job)
        assert made.counts == {"ok": 6, "failed": 0, "skipped": 0, "no_region": 0, "new": 2}
        assert failures(job) == {}
        assert {i: after[i] for i in before} == before

    def test_questions_without_answers(self, job: AnnotateConfig) -> None:
        lines = [
            {"question_id": 1, "image": "000.png", "text": "what?"},
            {"id": "own", "dataset": "d", "image": "000.png", "question": "what?", "answers": ["x"]},
        ]
        job.data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        run(job, SilentReporter())
        assert failures(job) == {"1": f"{job.data}:1: {annotator.NO_ANSWER}"}
        assert list(stored(job)) == ["own"]
        shared = replace(job, policy="from_questions", out=job.out.with_name("shared"))
        run(shared, SilentReporter())
        assert stored(shared)["1"].box == stored(shared)["own"].box
        spoken = replace(job, target="argmax", out=job.out.with_name("spoken"))
        assert run(spoken, SilentReporter()).counts["ok"] == 2

    def test_bad_records_and_text_are_counted_and_told(self, job: AnnotateConfig) -> None:
        def change(samples: list[dict[str, Any]]) -> None:
            samples[0]["conversations"].pop()
            samples.append({"id": "t", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})

        edit_data(job, change)
        told = Told()
        made = run(job, told)
        assert made.counts == {"ok": 5, "failed": 1, "skipped": 1, "no_region": 0, "new": 5}
        assert len(told.warnings) == 1
        assert "odd number of turns" in told.warnings[0]
        assert failures(job) == {"data.json:1": told.warnings[0]}

    def test_relevance_that_says_nothing_is_an_annotation_with_a_reason(
        self, job: AnnotateConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mute(Backbone):
            settings: ClassVar[dict[str, str]] = {"name": "mute"}

            def relevance(self, groups: Sequence[Any]) -> list[list[Relevance]]:
                boxes = (Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1))
                return [[Relevance(Regions(boxes, (1.0, 1.0), scores=(0.0, 0.0))) for _ in asked] for _, asked in groups]

        real = annotator.plug.load
        monkeypatch.setattr(
            annotator.plug, "load", lambda kind, *a, **o: Mute() if kind == "backbones" else real(kind, *a, **o)
        )
        with pytest.raises(FailuresError, match=r"\b6\b"):
            run(job, SilentReporter())
        made = manifest.read(job.out)
        assert {(a.box, a.reason) for a in stored(job).values()} == {(None, roi.NO_RELEVANCE)}
        assert made.counts == {"ok": 0, "failed": 6, "skipped": 0, "no_region": 6, "new": 6}
        with pytest.raises(FailuresError):
            run(job, SilentReporter())
        assert manifest.read(job.out).counts["new"] == 0

    def test_too_many_failures_stop_the_job_and_keep_what_is_done(self, job: AnnotateConfig) -> None:
        (job.images / "001.png").unlink()
        config = replace(job, batch_images=1, max_failures=1)
        with pytest.raises(FailuresError, match=r"\b2\b.*\b1\b"):
            run(config, SilentReporter())
        assert list(stored(job)) == ["s000#q0"]
        assert manifest.read(job.out).status == "failed"
        assert run(replace(config, max_failures=2), SilentReporter()).counts["ok"] == 4

    def test_other_settings_are_refused_and_the_store_keeps_its_own(self, job: AnnotateConfig) -> None:
        run(replace(job, limit=1), SilentReporter())
        for other in ({"target": "logit"}, {"extend": 0.2}, {"policy": "from_image"}, {"backbone": "patches"}):
            with pytest.raises(InputError, match="other settings"):
                run(replace(job, **other), SilentReporter())
        assert run(replace(job, batch_images=1), SilentReporter()).counts["ok"] == 6

    def test_a_model_that_is_none_leaves_no_store_behind(self, job: AnnotateConfig, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"config\.json"):
            run(replace(job, model=str(tmp_path / "empty")), SilentReporter())
        assert not job.out.exists()

    def test_data_without_pictures(self, job: AnnotateConfig) -> None:
        job.data.write_text("[]", encoding="utf-8")
        with pytest.raises(InputError, match=r"\.json"):
            run(job, SilentReporter())

    @pytest.mark.parametrize(
        "wrong",
        [{"batch_images": 0}, {"limit": 0}, {"max_failures": -1}, {"threshold": 2.0}, {"extend": -1.0}],
    )
    def test_impossible_settings(self, job: AnnotateConfig, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            replace(job, **wrong)

    def test_options_of_plug_ins(self, job: AnnotateConfig) -> None:
        with pytest.raises(InputError, match=r"'patches'.*'tokens'"):
            run(replace(job, backbone="patches", backbone_options={"tokens": 2}), SilentReporter())
        with pytest.raises(InputError, match=r"'grid'.*'window'.*'windows'"):
            run(replace(job, detector="grid", detector_options={"window": 2}), SilentReporter())
        with pytest.raises(InputError, match="detector"):
            replace(job, detector_options={"most": 2})
        assert run(replace(job, backbone_options={"tokens": 2}), SilentReporter()).counts["ok"] == 6


class TestResume:
    def test_limit_ends_with_a_whole_image_and_can_be_raised(self, job: AnnotateConfig) -> None:
        assert run(replace(job, limit=2), SilentReporter()).counts["ok"] == 3
        made = run(job, SilentReporter())
        assert made.counts == {"ok": 6, "failed": 0, "skipped": 0, "no_region": 0, "new": 3}

    def test_two_writers(self, job: AnnotateConfig) -> None:
        run(job, SilentReporter())
        with Store.read(job.out) as store:
            mark = store.fingerprint
        with Store.create_or_resume(job.out, mark, {}), pytest.raises(LockedError):
            run(job, SilentReporter())

    def test_merged_heat_maps(self) -> None:
        one, two = Relevance(heat=((1.0, 2.0), (0.0, 4.0))), Relevance(heat=((5.0, 0.0), (0.0, 0.0)))
        assert annotator.merged([one, two]).heat == ((1.25, 0.5), (0.0, 1.0))

    @pytest.mark.usefixtures("one_thread")
    def test_killed_in_the_middle(self, tmp_path: Path, checkpoint: Path) -> None:
        write_data(tmp_path, [1, 2] * 20)
        config = AnnotateConfig(
            tmp_path / "data.json", tmp_path / "images", str(checkpoint), tmp_path / "whole", batch_images=3, device="cpu"
        )
        run(config, SilentReporter())
        killed = replace(config, out=tmp_path / "killed")
        done = kill_in_the_middle(killed)
        assert 0 < done < 60
        with Store.read(killed.out) as store:
            assert store.info()["annotations"] == done  # nothing that was committed is lost
        assert not (killed.out / manifest.FILE).exists()
        made = run(killed, SilentReporter())
        assert made.counts == {"ok": 60, "failed": 0, "skipped": 0, "no_region": 0, "new": 60 - done}
        assert exported(killed) == exported(config)


SCRIPT = """
import sys, time
from pathlib import Path
from cos_core.annotate import AnnotateConfig, run
from cos_core.interfaces import SilentReporter

class Slow(SilentReporter):
    def progress(self, stage, done, total, detail=""):
        print(done, flush=True)
        time.sleep(0.2)

data, images, model, out, batch = sys.argv[1:]
run(AnnotateConfig(Path(data), Path(images), model, Path(out), batch_images=int(batch), device="cpu"), Slow())
"""


def kill_in_the_middle(config: AnnotateConfig) -> int:
    """Runs the job in a process of its own, kills it with SIGKILL after some windows, and says how much it had committed."""
    arguments = [config.data, config.images, config.model, config.out, config.batch_images]
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.strip().isdigit())
    committed = [int(next(lines)) for _ in range(4)]
    os.kill(process.pid, signal.SIGKILL)
    rest = [int(line) for line in lines]
    process.wait(timeout=7200)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return [*committed, *rest][-1]
