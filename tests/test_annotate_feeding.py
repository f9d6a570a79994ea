"""Pictures are read and cut beside the model, ahead of it, and what is found does not depend on that."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from annotate_jobs import exported, failures, write_data
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core.annotate import AnnotateConfig, annotator, run, work
from cos_core.backbones import _pictures
from cos_core.backbones._ahead import Ahead
from cos_core.detectors.grid import Grid
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.images import ImageSource
from cos_core.files.read_ahead import PictureReader
from cos_core.geometry import Box
from cos_core.interfaces import Backbone, Relevance, SilentReporter
from cos_core.system import worker_process
from cos_core.types import Example, Regions


def picture(seed: int, size: tuple[int, int] = (70, 50)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def groups() -> list[tuple[Image.Image, list[Example]]]:
    return [(picture(n), [Example(f"{n}", "d", f"{n}.png", "what is it?", answers=("a cat",))] * (n % 3)) for n in range(5)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), image_size=28)


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path) -> AnnotateConfig:
    write_data(tmp_path, [1, 2, 3, 1, 1, 2, 1, 1])
    (tmp_path / "images" / "003.png").write_bytes(b"torn")
    (tmp_path / "images" / "005.png").unlink()
    return AnnotateConfig(
        tmp_path / "data.json",
        tmp_path / "images",
        str(checkpoint),
        tmp_path / "store",
        device="cpu",
        dtype="float32",
        batch_images=2,
        keep_heat=True,
    )


@pytest.mark.parametrize("name", ["regions", "patches"])
@pytest.mark.parametrize("prepared", [range(5), [1, 3]], ids=["all", "some"])
def test_what_was_prepared_gives_the_same_to_the_bit(name: str, prepared: Sequence[int], checkpoint: Path) -> None:
    torch.set_num_threads(1)
    backbone: Any = plug.load("backbones", name, model=str(checkpoint), device="cpu", dtype="float32")
    asked = groups()
    expected = backbone.relevance(asked)
    for number in prepared:
        thread = threading.Thread(target=backbone.prepare, args=(asked[number][0], f"{number}.png"))
        thread.start()
        thread.join()
    assert backbone.ahead.held > 0
    assert backbone.relevance(asked) == expected
    assert backbone.ahead.held == 0


@pytest.mark.parametrize("backbone", ["regions", "patches"])
def test_stores_do_not_depend_on_reading_ahead(backbone: str, job: AnnotateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a worker that opens every picture when it is asked about, which is what one thread did."""
    torch.set_num_threads(1)
    job = replace(job, backbone=backbone)

    def one_by_one(self: work.AnnotateWorker, portions: Any) -> Any:
        for portion in portions:
            for window in portion.windows:
                yield self._annotator.outcomes(window.groups, ImageSource(job.images))

    slow = replace(job, out=job.out.with_name("slow"))
    with monkeypatch.context() as patch:
        patch.setattr(work.AnnotateWorker, "outcomes", one_by_one)
        made = run(slow, SilentReporter())
    assert run(job, SilentReporter()).counts == made.counts
    assert made.counts["failed"] == 3
    assert exported(job) == exported(slow)
    assert failures(job) == failures(slow)


class Waiting(Backbone):
    """A backbone whose first window waits until the second one's pictures have been prepared in another thread."""

    settings: ClassVar[dict[str, str]] = {"name": "waiting"}

    def __init__(self) -> None:
        self.prepared: dict[str, str] = {}
        self.asked: list[list[str]] = []
        self.there = threading.Event()

    def prepare(self, image: Image.Image, path: str) -> None:
        assert image.size[1] == 64
        self.prepared[path] = threading.current_thread().name
        if {"002.png", "004.png"} <= self.prepared.keys():
            self.there.set()

    def relevance(self, asked: Sequence[Any]) -> list[list[Relevance]]:
        self.asked.append([examples[0].image for _, examples in asked])
        if len(self.asked) == 1:
            assert self.there.wait(7200), "the model waits for the next window's pictures until it has done with this one's"
            assert "006.png" not in self.prepared, "no more than one window is read ahead"
        boxes = (Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1))
        return [[Relevance(Regions(boxes, (1.0, 1.0), scores=(0.5, 0.1))) for _ in examples] for _, examples in asked]


def test_the_next_window_is_read_while_the_model_works(job: AnnotateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    real = annotator.plug.load
    monkeypatch.setattr(annotator.plug, "load", lambda kind, *a, **o: waiting if kind == "backbones" else real(kind, *a, **o))
    job = replace(job, batch_images=3, keep_heat=False)
    assert run(job, SilentReporter()).counts["ok"] == 9
    assert waiting.asked == [["000.png", "001.png", "002.png"], ["004.png"], ["006.png", "007.png"]]
    assert all(name.startswith("pictures") for name in waiting.prepared.values())


def test_a_portion_that_lies_ready_is_read_before_it_is_begun(job: AnnotateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = annotator.build(job)
    worker = work.AnnotateWorker(made, job)
    groups_of = [[Example("a", "d", "000.png", "what?", answers=("x",))], [Example("b", "d", "001.png", "what?", answers=())]]
    portion = work.WindowBatch([work.WindowRequest(groups_of)])
    opened: list[str] = []
    real = ImageSource.open
    monkeypatch.setattr(ImageSource, "open", lambda self, name: opened.append(name) or real(self, name))
    worker.expect(portion)
    (found,) = worker.work([portion])
    assert opened == ["000.png"], "once, and not what nobody will be asked about"
    assert [a.example_id for a in found.annotations] == ["a"]
    assert [name for name, _ in found.failures] == ["b"]
    assert worker._expected == {}


def test_pictures_that_cannot_be_read_are_refused_when_asked_for(job: AnnotateConfig) -> None:
    opened = PictureReader(threads=2).begin(["000.png", "003.png"], ImageSource(job.images))
    assert opened.open("000.png").size == (64, 64)
    for _ in range(2):
        with pytest.raises(InputError, match=r"003\.png"):
            opened.open("003.png")
    assert opened.open("001.png").size == (72, 64), "what was not begun is read when it is asked for"


class Shy(Grid):
    """A detector that says nothing of threads; it is asked in the thread that asks the backbone."""

    parallel: ClassVar[bool] = False
    threads: ClassVar[set[str]] = set()

    def detect(self, image: Image.Image, path: str = "") -> Regions:
        self.threads.add(threading.current_thread().name)
        return super().detect(image, path)


def test_a_detector_that_knows_no_threads_is_asked_in_one(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cutting: set[str] = set()
    real = _pictures.prepared
    monkeypatch.setattr(
        _pictures, "prepared", lambda *a: cutting.add(threading.current_thread().name.split("_")[0]) or real(*a)
    )
    backbone: Any = plug.load("backbones", "regions", detector=Shy(), model=str(checkpoint), device="cpu", dtype="float32")
    asked = groups()
    threading.Thread(target=backbone.prepare, args=(asked[1][0], "1.png")).start()
    backbone.relevance(asked)
    assert Shy.threads == {threading.current_thread().name}
    assert cutting == {"crops"}


def test_what_lies_ready_is_bounded_and_goes_with_its_picture() -> None:
    ahead: Ahead[str] = Ahead(most=100)
    one, two, three = (picture(n) for n in range(3))
    ahead.put(one, 60, lambda: "one")
    ahead.put(two, 60, lambda: pytest.fail("made, though there is no room for it"))
    ahead.put(three, 40, lambda: "three")
    assert ahead.held == 100
    assert (ahead.take(one), ahead.take(two), ahead.held) == ("one", None, 40)
    with pytest.raises(InputError):
        ahead.put(two, 10, lambda: (_ for _ in ()).throw(InputError("no")))
    assert ahead.held == 40
    del three
    gc.collect()
    assert ahead.held == 0


def test_threads_are_the_process_s_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_feeders", None)
    monkeypatch.setattr(worker_process, "cores", lambda: 6)
    assert worker_process.feeders() == 6
    for name in worker_process._THREADS:
        monkeypatch.setenv(name, "1")
    worker_process.begin_worker(3)
    assert worker_process.feeders() == 3
    worker_process.begin_worker(1, 40)
    assert worker_process.feeders() == 8
