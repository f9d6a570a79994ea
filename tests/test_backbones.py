"""Relevance backbones on a tiny random LLaVA: equality with the slow way, and the contract of every backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference.relevance_reference import relevance_matrix
from tiny_llava import make_checkpoint
from tiny_lxmert import FeatureGrid
from tiny_lxmert import make_checkpoint as make_lxmert

from cos_core.backbones import _pictures, _questions, lxmert, patches, regions
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.prompts import dialogue
from cos_core.errors import InputError
from cos_core.files import images, plug
from cos_core.geometry import SquarePad
from cos_core.interfaces import Detector
from cos_core.models import pixels
from cos_core.relevance import heat, propagation
from cos_core.relevance.propagation import Readings, SweepSettings
from cos_core.types import Example, Regions


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours, so that different crops differ at every scale."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def example(question: str, answer: str | None = "a cat", name: str = "e") -> Example:
    return Example(name, "test", "a.png", question, () if answer is None else (answer,))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), num_key_value_heads=2)


@pytest.fixture(scope="module")
def by_regions(checkpoint: Path) -> regions.RegionsBackbone:
    return regions.build(str(checkpoint), device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def by_patches(checkpoint: Path) -> patches.PatchesBackbone:
    return patches.build(str(checkpoint), device="cpu", dtype="float64")


def slow_row(asker: _questions.Asker, features: torch.Tensor, question: str, answer: str) -> torch.Tensor:
    """Relevance of the image positions by the N x N reference: the mean row over the answer's bytes, from the log-odds."""
    model = asker.model
    turns = dialogue(model.profile, question, chain=False, answer=answer)
    text = "".join(p if isinstance(p, str) else "<image>" * len(features) for t in turns for p in t.parts if t.role == "user")
    prompt = f"{model.profile.system}{model.profile.user}{text}{model.profile.assistant} "
    ids = torch.tensor([model.tokenizer(prompt + answer)["input_ids"]])
    size = len(answer.encode())
    positions = torch.arange(ids.shape[1] - size, ids.shape[1])[None] - 1
    readings = Readings(positions, ids[:, -size:], torch.ones(1, size, dtype=torch.bool))
    matrix = relevance_matrix(
        model.model.model.language_model,
        model.model.lm_head,
        model.embed(ids, features),
        lambda logits: propagation.target_score(logits[:, positions[0]], readings, "log-odds"),
    )
    return matrix[0, positions[0]].mean(0)[ids[0] == model.image_token_id]


def test_regions_equal_the_slow_way(by_regions: regions.RegionsBackbone) -> None:
    image = picture(101, 89, 1)
    ((found,),) = by_regions.relevance([(image, [example("what is it?")])])
    assert found.regions is not None
    assert found.regions.scores is not None
    model = by_regions.asker.model
    tokens = []
    for box in found.regions.boxes:
        (features,) = model.image_features(model.pixels([crop_region(image, box, model.profile.crop_from, model.fill)]))
        tokens.append(features.view(4, 4, -1)[1:3, 1:3].mean((0, 1)))  # 0.6 of four patches: the middle two
    expected = slow_row(by_regions.asker, torch.stack(tokens), "what is it?", "a cat")
    assert len(expected) == 6 * 5 + 3 * 2  # along 101 and 89 pixels, of side 0.3 and of side 0.5
    assert torch.allclose(torch.tensor(found.regions.scores, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)
    assert expected.std() > 0


def test_four_tokens_a_region_are_summed(checkpoint: Path) -> None:
    backbone = regions.build(str(checkpoint), device="cpu", dtype="float64", tokens=2)
    image = picture(40, 40, 7)
    ((found,),) = backbone.relevance([(image, [example("what?")])])
    assert found.regions is not None
    assert found.regions.scores is not None
    model = backbone.asker.model
    crops = [crop_region(image, box, model.profile.crop_from, model.fill) for box in found.regions.boxes]
    cells = model.image_features(model.pixels(crops)).view(29, 4, 4, -1)[:, 1:3, 1:3]
    expected = slow_row(backbone.asker, cells.reshape(29 * 4, -1), "what?", "a cat").view(29, 4).sum(1)
    assert torch.allclose(torch.tensor(found.regions.scores, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="tokens"):
        regions.build(str(checkpoint), tokens=0)


def test_patches_equal_the_slow_way(by_patches: patches.PatchesBackbone) -> None:
    image = picture(101, 53, 2)
    ((found,),) = by_patches.relevance([(image, [example("what is it?")])])
    assert found.heat is not None
    model = by_patches.asker.model
    (features,) = model.image_features(model.pixels([image]))
    expected = slow_row(by_patches.asker, features, "what is it?", "a cat").view(4, 4)
    # 101 x 53: the picture is on three quarters of the square's rows, on all of them in part.
    assert torch.allclose(torch.tensor(found.heat, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)


class TestMixedMode:
    """A detector's boxes scored on the map of the patches."""

    @pytest.mark.parametrize("score", ["area", "contrast"])
    def test_boxes_are_scored_on_the_map(self, checkpoint: Path, by_patches: patches.PatchesBackbone, score: str) -> None:
        grid = plug.load("detectors", "grid")
        backbone = patches.build(str(checkpoint), grid, device="cpu", dtype="float64", score=score)
        image, asked = picture(101, 53, 2), [example("what is it?"), example("why?", "so")]
        (both,), (plain,) = backbone.relevance([(image, asked)]), by_patches.relevance([(image, asked)])
        assert backbone.roi.region == "top1"
        for mixed, alone in zip(both, plain, strict=True):
            assert mixed.heat is not None
            assert alone.heat is not None
            assert np.array(mixed.heat) == pytest.approx(np.array(alone.heat), rel=1e-9)
            assert alone.regions is None
            assert mixed.regions is not None
            assert mixed.regions.boxes == grid.detect(image).boxes
            pad = SquarePad(101, 53)
            expected = heat.box_scores(alone.heat, mixed.regions.boxes, pad, score)  # type: ignore[arg-type]
            assert mixed.regions.scores == pytest.approx(expected, rel=1e-9)
        assert both[0].regions != both[1].regions

    def test_a_picture_without_boxes(self, checkpoint: Path) -> None:
        class Nothing(Detector):
            def detect(self, image: Image.Image, path: str = "") -> Regions:
                return Regions((), ())

        backbone = patches.build(str(checkpoint), Nothing(), device="cpu")
        ((found,),) = backbone.relevance([(picture(30, 30, 1), [example("what?")])])
        assert found.regions == Regions((), (), scores=())

    def test_every_option_is_in_the_settings(self, checkpoint: Path) -> None:
        grid = plug.load("detectors", "grid")
        choices: list[dict[str, Any]] = [
            {},
            {"detector": grid},
            {"detector": grid, "score": "contrast"},
            {"contrast": True},
            {"clip": 99.0},
            {"smooth": True},
        ]
        marks = [patches.build(str(checkpoint), device="cpu", **choice).settings for choice in choices]
        assert len({repr(mark) for mark in marks}) == len(choices)
        # How memory is bounded changes nothing.
        assert patches.build(str(checkpoint), device="cpu", stream_layers=True).settings == marks[0]


class TestTreatment:
    def test_padding_holds_no_relevance(self, by_patches: patches.PatchesBackbone) -> None:
        ((found,),) = by_patches.relevance([(picture(100, 50, 2), [example("what?")])])
        assert found.heat is not None
        assert found.heat[0] == found.heat[3] == (0.0,) * 4
        assert min(found.heat[1] + found.heat[2]) > 0

    def test_options(self, checkpoint: Path, by_patches: patches.PatchesBackbone) -> None:
        image, asked = picture(60, 60, 3), [example("what?"), example("why?", "so")]
        pad = SquarePad(60, 60)
        groups = [(image, asked), (picture(50, 50, 1), []), (picture(40, 70, 4), asked[:1])]
        plain = [[np.array(r.heat) for r in found] for found in by_patches.relevance(groups)]
        nothing = by_patches.relevance([(image, [example("", None)]) for image, _ in groups])
        for options, expected in (
            ({"clip": 90.0}, heat.clipped(plain[0][1], pad, 90)),
            ({"smooth": True}, heat.smoothed(plain[0][1], pad)),
            ({"contrast": True}, heat.beyond(plain[0][1], np.array(nothing[0][0].heat), pad)),
        ):
            backbone = patches.build(str(checkpoint), device="cpu", dtype="float64", **options)  # type: ignore[arg-type]
            found = backbone.relevance(groups)
            assert [len(one) for one in found] == [2, 0, 1]
            assert np.array(found[0][1].heat) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert np.array(found[0][1].heat) != pytest.approx(plain[0][1], rel=1e-3)

    @pytest.mark.parametrize(("options", "message"), [({"clip": 0.0}, "percentile"), ({"score": "mean"}, "'mean'")])
    def test_options_are_checked(self, options: dict[str, Any], message: str, checkpoint: Path) -> None:
        with pytest.raises(InputError, match=message):
            patches.build(str(checkpoint), **options)


@pytest.mark.parametrize("name", ["patches", "regions"])
@pytest.mark.parametrize("stream", [False, True])
def test_six_questions_on_one_picture_equal_one_by_one(name: str, stream: bool, checkpoint: Path) -> None:
    """Through the prefix that they share, to float noise."""
    backbone = plug.load("backbones", name, model=str(checkpoint), device="cpu", dtype="float64", stream_layers=stream)
    texts = [
        ("what?", "a cat"),
        ("where is the longest?", "far away"),
        ("a?", "b"),
        ("b?", "a"),
        ("who?", "me"),
        ("who?", "you"),
    ]
    asked = [example(q, a, str(i)) for i, (q, a) in enumerate(texts)]
    (together,) = backbone.relevance([(picture(60, 60, 3), asked)])
    for one, found in zip(asked, together, strict=True):
        ((alone,),) = backbone.relevance([(picture(60, 60, 3), [one])])
        assert flat(alone) == pytest.approx(flat(found), rel=1e-9, abs=1e-12)


def settings_for(name: str, path: Path, seed: int = 0) -> dict[str, Any]:
    """A tiny checkpoint of the kind that backbone `name` runs, written below `path`, and what else it needs."""
    made = path / f"{'lxmert' if name == 'lxmert' else 'llava'}-{seed}"
    if not made.exists():
        (make_lxmert if name == "lxmert" else make_checkpoint)(made, seed=seed)
    return {"model": str(made), "device": "cpu", **({"detector": FeatureGrid()} if name == "lxmert" else {})}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize("name", plug.available("backbones"))
class TestContract:
    def test_groups_come_back_as_given_and_do_not_depend_on_the_batch(
        self, name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backbone = plug.load("backbones", name, dtype="float64", **settings_for(name, checkpoints))
        groups = [
            (picture(60, 60, 3), [example("what?"), example("where is the long-winded one?", "far away")]),
            (picture(90, 40, 4), [example("", None)]),
            (picture(40, 90, 5), []),
            (picture(50, 50, 6), [example("why?", "yes"), example("", None), example("what?", "no")]),
        ]
        together = backbone.relevance(groups)
        assert [len(found) for found in together] == [2, 1, 0, 3]
        monkeypatch.setattr(_questions, "MOST_TOKENS", 1)
        monkeypatch.setattr(lxmert, "ACTIVATION_BYTES", 1)
        monkeypatch.setattr(_pictures, "pixels_per_call", lambda side: 3)
        for group, found in zip(groups, together, strict=True):
            if group[1]:
                (alone,) = backbone.relevance([group])
                for one, other in zip(alone, found, strict=True):
                    assert flat(one) == pytest.approx(flat(other), rel=1e-9, abs=1e-12)
        assert flat(together[0][0]) != pytest.approx(flat(together[0][1]), rel=1e-3)

    def test_no_groups(self, name: str, checkpoints: Path) -> None:
        backbone = plug.load("backbones", name, dtype="float32", **settings_for(name, checkpoints))
        assert backbone.relevance([]) == []

    def test_an_answer_is_needed_unless_the_model_speaks_for_itself(self, name: str, checkpoints: Path) -> None:
        options = {"dtype": "float32", **settings_for(name, checkpoints)}
        asked = [(picture(30, 30, 1), [example("what?", None)])]
        with pytest.raises(InputError, match="'e'"):
            plug.load("backbones", name, **options).relevance(asked)
        ((found,),) = plug.load("backbones", name, target="argmax", **options).relevance(asked)
        assert max(flat(found)) >= 0

    def test_settings_tell_what_changes_scores(self, name: str, checkpoints: Path) -> None:
        options = {"dtype": "float32", "target": "log-odds", **settings_for(name, checkpoints)}
        other = {**options, **settings_for(name, checkpoints, seed=1)}
        marks = [
            plug.load("backbones", name, **choice).settings
            for choice in (options, options, {**options, "target": "logit"}, {**options, "last_layers": 1}, other)
        ]
        assert marks[0] == marks[1]
        assert len({repr(mark) for mark in marks}) == 4


def flat(found: Any) -> list[float]:
    if found.regions is not None:
        return list(found.regions.scores)
    return [value for row in found.heat for value in row]


def test_an_image_without_candidates_gives_empty_regions(by_regions: regions.RegionsBackbone) -> None:
    class OnlyWide(Detector):
        def detect(self, image: Image.Image, path: str = "") -> Regions:
            found = by_regions.detector.detect(image)
            return found if image.width > image.height else Regions((), ())

    backbone = replace(by_regions, detector=OnlyWide())
    first, second = backbone.relevance([(picture(30, 60, 1), [example("a?")]), (picture(60, 30, 1), [example("a?")])])
    assert first[0].regions == Regions((), (), scores=())
    assert second[0].regions is not None
    assert second[0].regions.boxes
    assert backbone.relevance([(picture(30, 60, 1), [example("a?")])])[0][0].regions == Regions((), (), scores=())


def test_pixels_equal_the_processor(by_regions: regions.RegionsBackbone) -> None:
    model = by_regions.asker.model
    crops = [picture(17, 17, 1), picture(130, 130, 2), picture(56, 56, 3), picture(90, 31, 4), picture(1, 1, 5)]
    squares = [images.square_pad(crop, model.fill) for crop in crops]
    wanted = model.image_processor(squares, return_tensors="pt")["pixel_values"]
    assert model.pixels(crops).shape == wanted.shape == (5, 3, 56, 56)
    assert torch.equal(model.pixels(crops), wanted)


def test_an_unusual_processor_is_left_to_itself(by_regions: regions.RegionsBackbone) -> None:
    class Unusual:
        do_resize = do_rescale = True
        do_normalize = False

    assert pixels.square_side(Unusual()) is None
    assert pixels.square_side(by_regions.asker.model.image_processor) == 56


@pytest.mark.parametrize(("grid", "kept"), [(5, 3), (4, 2), (24, 14), (2, 2), (1, 1)])
def test_the_centre_of_a_token_grid(grid: int, kept: int) -> None:
    class Vision:
        image_size, patch_size = 14 * grid, 14

    class Model:
        model = type("M", (), {"config": type("C", (), {"vision_config": Vision})})

    margin = (grid - kept) // 2
    cells = torch.zeros(grid, grid)
    cells[margin : grid - margin, margin : grid - margin] = 1.0
    inside = cells.reshape(1, -1, 1)
    assert cells.sum() == kept**2
    assert regions.centre_tokens(inside, Model()).item() == 1.0
    assert regions.centre_tokens(1 - inside, Model()).item() == 0.0
    assert regions.centre_tokens(torch.cat([inside, inside]), Model(), 2).tolist() == [[1.0]] * 8
    with_class_token = torch.cat([torch.full((1, 1, 1), 99.0), inside], 1)
    assert regions.centre_tokens(with_class_token, Model()).item() == 1.0


def test_pictures_a_call() -> None:
    assert (_pictures.pixels_per_call(40), _pictures.pixels_per_call(336)) == (512, 18)


class TestBatches:
    def questions(self, counts: list[int]) -> list[propagation.Question]:
        """For each picture some questions, of 10 to 14 tokens."""
        pictures = [torch.zeros(3, 5) for _ in counts]
        ids = [list(range(10 + i % 5)) for i in range(sum(counts))]
        owners = [picture for picture, count in zip(pictures, counts, strict=True) for _ in range(count)]
        return [propagation.Question(i, i, owner) for i, owner in zip(ids, owners, strict=True)]

    def test_units_are_one_picture_s_questions_in_parts_of_like_size(self) -> None:
        asked = self.questions([1, 9, 2, 17])
        units = _questions._units(range(29), asked)
        assert [len(unit) for unit in units] == [1, 4, 5, 2, 5, 6, 6]
        assert sorted(i for unit in units for i in unit) == list(range(29))
        for unit in units:
            assert len({id(asked[i].features) for i in unit}) == 1

    @pytest.mark.parametrize("most", [1, 25, 60, 8192])
    def test_a_batch_has_units_of_one_size_within_memory(
        self, by_patches: patches.PatchesBackbone, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        asked = self.questions([1, 2, 1, 2, 1, 3, 1])
        monkeypatch.setattr(_questions, "MOST_TOKENS", most)
        batches = list(by_patches.asker._batches(_questions._units(range(len(asked)), asked), asked))
        assert sorted(i for batch in batches for unit in batch for i in unit) == list(range(11))
        for batch in batches:
            assert len({len(unit) for unit in batch}) == 1
            widest = max(sum(len(asked[i].ids) for i in unit) for unit in batch)
            assert len(batch) == 1 or len(batch) * widest <= most
        assert len(batches) == {1: 7, 25: 6, 60: 3, 8192: 3}[most]


@pytest.mark.parametrize("name", ["patches", "regions"])
def test_a_sliding_window_is_in_the_result(name: str, tmp_path: Path) -> None:
    path = make_mistral(tmp_path)
    backbone = plug.load("backbones", name, model=str(path), device="cpu", dtype="float64")
    assert backbone.notes == ()
    asked = [(picture(40, 40, 1), [example("what?"), example("why?", "so")])]
    (shared,) = backbone.relevance(asked)
    text = backbone.asker.model.model.model.language_model
    features = torch.randn(backbone.asker.model.image_tokens, 16, generator=torch.Generator().manual_seed(1)).double()
    question = backbone.asker.question(example("why?", "so"), _pictures.Shown(len(features), features))
    ((found,),) = propagation.explain(backbone.asker.model, [[question]], SweepSettings())
    # The same weights with a window over everything are another model.
    text.config.sliding_window = 10**6
    for layer in text.layers:
        layer.self_attn.sliding_window = 10**6
    ((wide,),) = propagation.explain(backbone.asker.model, [[question]], SweepSettings())
    assert flat(shared[0]) != flat(shared[1])
    assert (found - wide).abs().max() > 1e-9


def test_ordinary_attention_has_no_notes(by_patches: patches.PatchesBackbone) -> None:
    assert by_patches.notes == ()


def make_mistral(path: Path) -> Path:
    """The tiny checkpoint with a language model of sliding windows."""
    from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

    config = LlavaConfig.from_pretrained(make_checkpoint(path))
    words = len(AutoTokenizer.from_pretrained(path))
    config.text_config = Qwen2Config(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=0,
    )
    LlavaForConditionalGeneration(config).save_pretrained(path)
    return path
