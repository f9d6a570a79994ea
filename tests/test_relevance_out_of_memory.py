"""Running out of memory while relevance is computed: less at once, then a recorded failure; never a dead worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from annotate_jobs import failures, stored, write_data
from msgspec import structs
from PIL import Image
from tiny_llava import make_checkpoint
from tiny_lxmert import FeatureGrid
from tiny_lxmert import make_checkpoint as make_lxmert

from cos_core.annotate import AnnotateConfig, run
from cos_core.backbones._each import relevance_of_each
from cos_core.dialogue.prompts import dialogue
from cos_core.engines.hf import HfEngine
from cos_core.files import plug
from cos_core.infer import InferConfig
from cos_core.infer.relevance_regions import HeatFinder
from cos_core.infer.settings import finder
from cos_core.interfaces import Relevance, Request, SilentReporter
from cos_core.models import llava
from cos_core.relevance import propagation
from cos_core.types import Example

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


class Short:
    """Raises in the middle of a real forward pass whenever `too_much` of what enters the module; counts how often."""

    def __init__(self, too_much: Callable[[torch.Tensor], bool], error: Exception = ERRORS[0]) -> None:
        self.too_much, self.error, self.failed = too_much, error, 0

    def __call__(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered = args[0] if args else kwargs.get("hidden_states", kwargs.get("pixel_values"))
        if self.too_much(entered):
            self.failed += 1
            raise self.error


@contextmanager
def short_of_memory(module: Any, too_much: Callable[[torch.Tensor], bool], error: Exception = ERRORS[0]) -> Iterator[Short]:
    short = Short(too_much, error)
    handle = module.register_forward_pre_hook(short, with_kwargs=True)
    try:
        yield short
    finally:
        handle.remove()


class Saved:
    """What autograd keeps for backward passes, as if no more than `most` bytes of it could be had."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.peak, self.failed = most, 0, 0, 0

    def pack(self, tensor: torch.Tensor) -> Kept:
        if self.held + tensor.nbytes > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Kept(self, tensor)


class Kept:
    def __init__(self, saved: Saved, tensor: torch.Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        saved.held += tensor.nbytes
        saved.peak = max(saved.peak, saved.held)

    def __del__(self) -> None:
        self.saved.held -= self.tensor.nbytes


def picture(seed: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def groups() -> list[tuple[Image.Image, list[Example]]]:
    """Five pictures with one to four questions of several lengths."""
    return [
        (
            picture(number),
            [
                Example(
                    f"{number}{k}", "d", f"{number}.png", f"what is {'the very ' * k}{number}?", answers=(f"a {number} cat",)
                )
                for k in range(count)
            ],
        )
        for number, count in enumerate([1, 2, 4, 1, 3])
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), image_size=28, layers=4)


def flat(found: list[list[Relevance | str]]) -> list[float]:
    assert all(isinstance(one, Relevance) for group in found for one in group)
    rows = [one for group in found for one in group if isinstance(one, Relevance)]
    return [
        value
        for one in rows
        for value in (one.regions.scores or () if one.regions else [v for row in one.heat or () for v in row])
    ]


def decoder_layer(backbone: Any) -> Any:
    return backbone.asker.model.model.model.language_model.layers[2]


@pytest.mark.parametrize(("name", "error"), [("patches", ERRORS[0]), ("regions", ERRORS[1])], ids=["patches", "regions"])
def test_batches_are_cut_until_they_fit_and_grow_back(name: str, error: Exception, checkpoint: Path) -> None:
    backbone = plug.load("backbones", name, model=str(checkpoint), device="cpu", dtype="float64")
    expected = flat(backbone.relevance(groups()))
    with short_of_memory(decoder_layer(backbone), lambda entered: entered.shape[0] > 1, error) as short:
        found = backbone.relevance(groups())
    assert short.failed > 3
    assert flat(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    limit = backbone.asker.bytes_allowed.limit
    assert limit is not None
    with short_of_memory(decoder_layer(backbone), lambda entered: entered.shape[0] > 1, error) as again:
        backbone.relevance(groups()[:1])
    assert again.failed == 0
    assert backbone.asker.questions_allowed.limit == 1
    backbone.asker.bytes_allowed.patience = backbone.asker.questions_allowed.patience = 1
    for _ in range(4):
        backbone.relevance(groups())
    sizes: list[int] = []
    with short_of_memory(decoder_layer(backbone), lambda entered: bool(sizes.append(entered.shape[0]))):
        assert flat(backbone.relevance(groups())) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert max(sizes) > 1, "after enough that fitted, several go together again"


@pytest.mark.parametrize("name", ["patches", "regions"])
def test_one_question_whose_graph_does_not_fit_is_streamed(name: str, checkpoint: Path) -> None:
    """Not counted by a formula: what autograd saves is held against a limit, which the failed attempt's would use up."""
    backbone = plug.load("backbones", name, model=str(checkpoint), device="cpu", dtype="float64")
    asked = groups()[:1]
    free = Saved(2**40)
    with torch.autograd.graph.saved_tensors_hooks(free.pack, lambda kept: kept.tensor):
        expected = flat(backbone.relevance(asked))
    tight = Saved(free.peak // 2)
    with torch.autograd.graph.saved_tensors_hooks(tight.pack, lambda kept: kept.tensor):
        found = flat(backbone.relevance(asked))
    assert tight.failed == 1
    assert found == expected


@pytest.mark.parametrize("name", ["patches", "regions"])
def test_fewer_pictures_go_through_the_tower(name: str, checkpoint: Path) -> None:
    backbone = plug.load("backbones", name, model=str(checkpoint), device="cpu", dtype="float64")
    expected = flat(backbone.relevance(groups()))
    tower = backbone.asker.model.model.model.vision_tower
    with short_of_memory(tower, lambda pixels: pixels.shape[0] > 3) as short:
        assert flat(backbone.relevance(groups())) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert short.failed > 0


def test_lxmert_asks_fewer_pairs_at_once(tmp_path: Path) -> None:
    where = str(make_lxmert(tmp_path / "lxmert"))
    backbone = plug.load("backbones", "lxmert", detector=FeatureGrid(), model=where, device="cpu", dtype="float64")
    asked = groups()
    expected = flat(backbone.relevance(asked))
    with short_of_memory(backbone.model.lxmert.encoder.x_layers[0], lambda entered: entered.shape[0] > 2) as short:
        assert flat(backbone.relevance(asked)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert short.failed > 1


def test_what_does_not_fit_alone_costs_that_question_alone(checkpoint: Path) -> None:
    backbone = plug.load("backbones", "regions", model=str(checkpoint), device="cpu", dtype="float64")
    expected = backbone.relevance(groups())
    whole = [(image, list(asked)) for image, asked in groups()]
    whole[2][1][1] = structs.replace(whole[2][1][1], question="what " * 200)
    with short_of_memory(decoder_layer(backbone), lambda entered: entered.shape[1] > 800):
        found = relevance_of_each(backbone, whole)
    assert "CUDA out of memory" in str(found[2][1])
    found[2][1] = expected[2][1]
    assert flat(found) == pytest.approx(flat(expected), rel=1e-9, abs=1e-12)
    with (
        short_of_memory(decoder_layer(backbone), lambda _: True, ValueError("shapes")),
        pytest.raises(ValueError, match="shapes"),
    ):
        relevance_of_each(backbone, whole)


@pytest.mark.parametrize("backbone", ["regions", "patches"])
def test_a_job_records_what_does_not_fit_and_does_the_rest(
    backbone: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole stage: first with memory for two sequences, and for none of one question; then with enough."""
    write_data(tmp_path, [1, 3, 2])
    config = AnnotateConfig(
        tmp_path / "data.json",
        tmp_path / "images",
        str(checkpoint),
        tmp_path / "store",
        backbone,
        device="cpu",
        dtype="float64",
    )
    run(replace(config, out=tmp_path / "whole"), SilentReporter())
    expected = stored(replace(config, out=tmp_path / "whole"))
    text = config.data.read_text(encoding="utf-8")
    config.data.write_text(text.replace("what is 1?", "what is " + "very " * 200 + "1?", 1), encoding="utf-8")
    real = llava.load

    def load(*args: Any, **options: Any) -> llava.Llava:
        loaded = real(*args, **options)
        layer = loaded.model.model.language_model.layers[2]
        layer.register_forward_pre_hook(Short(lambda x: x.shape[0] > 2 or x.shape[1] > 800), with_kwargs=True)
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(llava, "load", load)
        made = run(config, SilentReporter())
    assert (made.status, made.counts["ok"], made.counts["failed"]) == ("complete", 5, 1)
    assert list(failures(config)) == ["s001#q1"]
    assert "out of memory" in failures(config)["s001#q1"]
    for name, annotation in stored(config).items():
        assert annotation.box == expected[name].box
        assert annotation.score == pytest.approx(expected[name].score, rel=1e-9)
    again = run(config, SilentReporter())
    assert (again.counts["ok"], again.counts["new"]) == (6, 1)
    assert failures(config) == {}


# --- one model, one memory ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> llava.Llava:
    return llava.load(checkpoint, device="cpu", dtype="float32")


def asked_about() -> list[tuple[Example, Image.Image, str]]:
    return [(asked[0], image, "a red cat") for image, asked in groups()]


def shared_finder(engine: HfEngine, checkpoint: Path) -> HeatFinder:
    made = finder(InferConfig(model=checkpoint, roi="relevance", device="cpu"), engine)
    assert made is not None
    return made


def generated(engine: HfEngine) -> list[tuple[int, ...]]:
    profile = engine.llava.profile
    requests = [Request(dialogue(profile, e.question, chain=False), {"full": image}, 6) for e, image, _ in asked_about()]
    return [reply.ids for reply in engine.generate(requests)]


def test_the_engine_and_relevance_share_one_model(loaded: llava.Llava, checkpoint: Path) -> None:
    engine = HfEngine(loaded)
    before = generated(engine)
    shared = shared_finder(engine, checkpoint)
    backbone: Any = shared.backbone
    assert backbone.asker.model is engine.llava
    own: Any = plug.load("backbones", "patches", model=str(checkpoint), device="cpu", dtype="float32")
    assert shared.find(asked_about()) == HeatFinder(own, own.roi).find(asked_about())
    assert generated(engine) == before
    assert shared.find(asked_about()) == HeatFinder(own, own.roi).find(asked_about())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in loaded.model.parameters())


def test_the_sweeps_activations_come_out_of_the_engines_budget(
    loaded: llava.Llava, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    monkeypatch.setattr("cos_core.system.memory.available", lambda _: 8 * gib)
    monkeypatch.setattr("cos_core.engines.hf.usual_budget", lambda _: 6 * gib)
    engine = HfEngine(loaded)
    backbone: Any = shared_finder(engine, checkpoint).backbone
    # Five are wanted for four of activations; two were free, and three come out of the engine's six.
    assert engine.kv_budget == 3 * gib
    assert backbone.asker.settings.activation_bytes == 4 * gib
    named = HfEngine(loaded, kv_budget=6 * gib)
    backbone = shared_finder(named, checkpoint).backbone
    assert named.kv_budget == 6 * gib
    assert backbone.asker.settings.activation_bytes == gib


def test_the_engine_lets_go_when_a_sweep_finds_no_memory(loaded: llava.Llava, checkpoint: Path) -> None:
    engine = HfEngine(loaded)
    shared = shared_finder(engine, checkpoint)
    expected = shared.find(asked_about())
    held = [picture for _, picture, _ in asked_about()]
    generated(engine)
    engine.generate([Request(dialogue(loaded.profile, "what", chain=False), {"full": held[0]}, 2)])
    assert engine._store.held > 0
    with short_of_memory(loaded.model.model.language_model.layers[2], lambda _: engine._store.held > 0) as short:
        assert shared.find(asked_about()) == expected
    assert short.failed > 0
    assert engine._store.held == 0
    with short_of_memory(loaded.model.model.language_model.layers[2], lambda entered: entered.shape[0] > 0):
        assert all("out of memory" in str(each) for each in shared.find(asked_about()))


def test_activations_follow_what_is_there() -> None:
    gib = 2**30
    expected = {100: 4 * gib, 5: 4 * gib, 4: 2 * gib, 2: gib, 0.4: gib // 4, 0.001: 2**26}
    assert {room: propagation.activation_bytes(int(room * gib)) for room in expected} == expected
