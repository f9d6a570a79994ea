"""The backbone `lxmert` on a tiny random LXMERT: against the slow reference, its answers, and what it says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from annotate_jobs import failures, stored, write_data
from feature_files import record, write_npz
from PIL import Image
from reference.coattention_reference import region_relevance
from tiny_lxmert import ANSWERS, FEATURES, FeatureGrid, make_checkpoint

from cos_core.annotate import AnnotateConfig, run
from cos_core.backbones import lxmert
from cos_core.detectors import grid
from cos_core.errors import InputError, MissingError
from cos_core.geometry import Box
from cos_core.interfaces import Detector, SilentReporter
from cos_core.relevance import roi
from cos_core.types import Example, Regions


def picture(seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((97, 61))


def example(question: str = "what is it?", answer: str | None = "a cat", name: str = "e") -> Example:
    return Example(name, "test", "a.png", question, () if answer is None else (answer,))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose configuration names no answers, as the published one's."""
    return make_checkpoint(tmp_path_factory.mktemp("unnamed"), labels=False)


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> lxmert.LxmertBackbone:
    return lxmert.build(str(checkpoint), FeatureGrid(), device="cpu", dtype="float64")


def test_scores_equal_the_slow_way(backbone: lxmert.LxmertBackbone) -> None:
    image = picture()
    ((first, second),) = backbone.relevance([(image, [example(), example("is it red?", "No.")])])
    found = FeatureGrid().detect(image)
    backbone.model.requires_grad_(True)
    for relevance, text, answer in ((first, "what is it?", 3), (second, "is it red?", 1)):
        assert relevance.regions is not None
        assert relevance.regions.scores is not None
        ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
        inputs = {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "visual_feats": torch.from_numpy(np.asarray(found.features, np.float64))[None],
            "visual_pos": torch.tensor([[box.corners for box in found.boxes]], dtype=torch.float64),
        }
        slow = region_relevance(backbone.model, inputs, lambda logits, answer=answer: logits[answer])
        assert relevance.regions.scores == pytest.approx(slow, abs=1e-12)
        assert relevance.regions.boxes == found.boxes
        assert relevance.regions.features is None
        assert relevance.note is None
        assert roi.from_regions(relevance.regions, backbone.roi).box is not None
    backbone.model.requires_grad_(False)


def test_an_answer_the_model_does_not_know_gives_its_own_choice_and_a_note(
    backbone: lxmert.LxmertBackbone, checkpoint: Path
) -> None:
    ((found,),) = backbone.relevance([(picture(), [example(answer="a giraffe")])])
    own = lxmert.build(str(checkpoint), FeatureGrid(), target="argmax", device="cpu", dtype="float64")
    ((chosen,),) = own.relevance([(picture(), [example(answer="a giraffe")])])
    assert found.regions == chosen.regions
    assert chosen.note is None
    named = next(name for name in ANSWERS if f"{name!r} was" in str(found.note))
    assert found.note == f"{named!r} was explained: the answer 'a giraffe' is none of the model's"


@pytest.mark.parametrize(
    ("answer", "index"), [("A cat!", 3), ("cat", 3), ("2", 5), ("two", 5), ("Yes", 0), ("far  away", 4), ("seven", -1)]
)
def test_answers_are_found_as_written_or_as_vqa_compares_them(answer: str, index: int) -> None:
    assert lxmert.Labels(ANSWERS).index(answer) == index


def test_an_answer_as_written_comes_before_one_like_it() -> None:
    assert lxmert.Labels(("0", "none", "a", "the")).index("None") == 1


class TestLabels:
    @pytest.mark.parametrize(
        "content",
        [list(ANSWERS), {name: i for i, name in enumerate(ANSWERS)}, {str(i): name for i, name in enumerate(ANSWERS)}],
    )
    def test_files(self, unnamed: Path, tmp_path: Path, content: Any) -> None:
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        assert lxmert.build(str(unnamed), FeatureGrid(), labels=str(path)).labels.names == ANSWERS

    def test_beside_the_weights(self, tmp_path: Path) -> None:
        made = make_checkpoint(tmp_path, labels=False)
        (made / "trainval_label2ans.json").write_text(json.dumps(ANSWERS), encoding="utf-8")
        assert lxmert.build(str(made), FeatureGrid()).labels.names == ANSWERS

    def test_without_names_gold_answers_cannot_be_explained(self, unnamed: Path) -> None:
        with pytest.raises(InputError, match=r"names no answers.*labels=trainval_label2ans.json.*target argmax"):
            lxmert.build(str(unnamed), FeatureGrid())
        backbone = lxmert.build(str(unnamed), FeatureGrid(), target="argmax")
        ((found,),) = backbone.relevance([(picture(), [example(answer=None)])])
        assert found.regions is not None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "cannot be read"),
            ("[]", "must be a list of answers"),
            ('{"yes": 0, "no": 2}', "must be a list of answers, or an object with an index from 0 for each"),
            ('{"yes": "first"}', "must map answers to indices"),
            ('["yes", 1]', "must be a list of answers"),
            ('["yes", "no"]', "names 2 answers, but the checkpoint .* has 7"),
        ],
    )
    def test_files_that_do_not_fit(self, unnamed: Path, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "labels.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            lxmert.build(str(unnamed), FeatureGrid(), labels=str(path))

    def test_labels_are_in_the_settings(self, unnamed: Path, tmp_path: Path) -> None:
        marks = set()
        for names in (ANSWERS, ANSWERS[::-1]):
            (tmp_path / "labels.json").write_text(json.dumps(names), encoding="utf-8")
            marks.add(repr(lxmert.build(str(unnamed), FeatureGrid(), labels=str(tmp_path / "labels.json")).settings))
        assert len(marks) == 2


@dataclass(frozen=True)
class Made(Detector):
    """Gives what it was made of."""

    regions: Regions
    settings: ClassVar[dict[str, Any]] = {}

    def detect(self, image: Image.Image, path: str = "") -> Regions:
        return self.regions


class TestDetectors:
    def test_a_detector_without_features(self, checkpoint: Path) -> None:
        backbone = lxmert.build(str(checkpoint), grid.build(), device="cpu")
        with pytest.raises(MissingError, match=r"the detector 'grid' gives boxes without features.*'precomputed'"):
            backbone.relevance([(picture(), [example()])])

    @pytest.mark.parametrize(("size", "message"), [(0, "without features"), (1024, "of 1024 numbers, but .* needs 19")])
    def test_a_detector_that_says_so_is_refused_at_once(self, checkpoint: Path, size: int, message: str) -> None:
        @dataclass(frozen=True)
        class Sized(Made):
            feature_size: int = size

        with pytest.raises(MissingError, match=message):
            lxmert.build(str(checkpoint), Sized(Regions((), ())))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: np.zeros((2, 23)), r"have shape \(2, 23\), but this LXMERT needs 19 numbers for each of the 2 boxes"),
            (lambda: np.zeros((3, FEATURES)), "shape"),
            (lambda: np.full((2, FEATURES), np.nan), "not finite"),
        ],
    )
    def test_features_that_do_not_fit(self, checkpoint: Path, make: Callable[[], Any], message: str) -> None:
        boxes = (Box(0, 0, 0.5, 0.5), Box(0.5, 0, 1, 1))
        backbone = lxmert.build(str(checkpoint), Made(Regions(boxes, (1.0, 1.0), make())), device="cpu")
        with pytest.raises(InputError, match=message):
            backbone.relevance([(picture(), [example()])])

    def test_nothing_detected(self, checkpoint: Path) -> None:
        backbone = lxmert.build(str(checkpoint), Made(Regions((), ())), device="cpu")
        ((found,),) = backbone.relevance([(picture(), [example()])])
        assert found.regions == Regions((), (), scores=())


class TestCheckpoints:
    def test_pickled_weights_run_no_code(self, tmp_path: Path) -> None:
        """The published checkpoint's `pytorch_model.bin` loads; one that would run code does not."""
        made = make_checkpoint(tmp_path)
        expected = lxmert.build(str(made), FeatureGrid(), device="cpu")
        weights = made / "pytorch_model.bin"
        torch.save(expected.model.state_dict(), weights)
        (made / "model.safetensors").unlink()
        again = lxmert.build(str(made), FeatureGrid(), device="cpu")
        assert again.settings != expected.settings  # other bytes
        assert torch.equal(again.model.lxmert.pooler.dense.weight, expected.model.lxmert.pooler.dense.weight)

        class Trap:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        torch.save({"x": Trap()}, weights)
        with pytest.raises(InputError, match="hold more than tensors"):
            lxmert.build(str(made), FeatureGrid(), device="cpu")
        assert not (tmp_path / "ran").exists()

    def test_another_kind_of_model(self) -> None:
        with pytest.raises(InputError, match=r"needs an LXMERT checkpoint, and .* is of the kind 'llava'"):
            lxmert.build("miniature", FeatureGrid())

    def test_weights_that_are_missing(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        made = make_checkpoint(tmp_path)
        weights = load_file(made / "model.safetensors")
        del weights["lxmert.pooler.dense.bias"]
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=r"lacks 1 weights, first lxmert.pooler.dense.bias"):
            lxmert.build(str(made), FeatureGrid())

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"has no config.json"):
            lxmert.build(str(tmp_path), FeatureGrid())


def test_a_question_longer_than_the_model_reads_is_cut(backbone: lxmert.LxmertBackbone) -> None:
    long, longer = ("abc " * count for count in (40, 50))
    ((first, second),) = backbone.relevance([(picture(), [example(long), example(longer)])])
    assert first.regions is not None
    assert second.regions is not None
    assert first.regions.scores == pytest.approx(second.regions.scores, rel=1e-12)


def test_a_job_on_feature_files(checkpoint: Path, tmp_path: Path) -> None:
    """Backbone lxmert with detector precomputed: regions in the store, a picture without features among the failures."""
    write_data(tmp_path, [2, 1, 1])
    job = AnnotateConfig(
        data=tmp_path / "data.json",
        images=tmp_path / "images",
        model=str(checkpoint),
        out=tmp_path / "store",
        backbone="lxmert",
        detector="precomputed",
        detector_options={"path": str(tmp_path / "features")},
        target="logit",
        device="cpu",
    )
    for number in (0, 2):
        size = Image.open(tmp_path / "images" / f"{number:03d}.png").size
        write_npz(tmp_path / "features" / f"{number:03d}.npz", record(number, 11, size, FEATURES))
    counts = run(job, SilentReporter()).counts
    assert (counts["ok"], counts["failed"]) == (3, 1)
    found = stored(job)
    assert sorted(found) == ["s000#q0", "s000#q1", "s002#q0"]
    assert all(annotation.box is not None and annotation.score > 0 for annotation in found.values())
    assert {max(annotation.regions_used) for annotation in found.values()} <= set(range(11))
    (reason,) = failures(job).values()
    assert "there are no features for the image '001.png'" in reason
