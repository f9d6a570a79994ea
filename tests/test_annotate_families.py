"""Annotating, and `--roi relevance`, with other families than LLaVA-1.5: questions, maps, stores, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotate_jobs import exported, failures, kill, stored, write_data
from PIL import Image
from test_relevance_out_of_memory import short_of_memory

from cos_core.annotate import AnnotateConfig, run
from cos_core.backbones import patches, regions
from cos_core.backbones._ahead import Ahead
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.encoding import IGNORE
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.geometry import SquarePad
from cos_core.infer import InferConfig
from cos_core.infer import run as infer
from cos_core.infer.settings import build_engine, finder, setting
from cos_core.interfaces import SilentReporter
from cos_core.models import families, hub, vision_input
from cos_core.models.families import PixelBudget
from cos_core.relevance import heat, propagation
from cos_core.runners import RunnerConfig
from cos_core.store.annotations import Store
from cos_core.types import Example

Build = Callable[..., Path]

GRIDS = (
    *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm"),
    *("gemma3", "paligemma", "mistral3", "pixtral"),
)
"""Families whose image tokens look at known parts of the picture, LLaVA-1.5 apart."""
NO_GRIDS = ("blip_2", "instructblip", "idefics", "glm4v", "aya_vision", "mllama")

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(width: int, height: int, seed: int = 1) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def example(question: str, answer: str = "a cat", name: str = "e") -> Example:
    return Example(name, "test", "a.png", question, (answer,))


def built(folder: Path, backbone: str = "patches", **options: Any) -> Any:
    return plug.load("backbones", backbone, model=str(folder), device="cpu", dtype="float64", **options)


def job(root: Path, folder: Path, counts: tuple[int, ...] = (1, 2), **options: Any) -> AnnotateConfig:
    write_data(root, counts)
    settings = {"backbone": "patches", "device": "cpu", "dtype": "float32", "keep_heat": True, **options}
    return AnnotateConfig(root / "data.json", root / "images", str(folder), root / "store", **settings)


def heats(config: AnnotateConfig) -> dict[str, np.ndarray]:
    with Store.read(config.out) as store:
        return {a.example_id: np.array(store.heat(a.example_id)) for a in store.annotations()}


class TestAsked:
    def test_a_dialogue_is_the_processors_own(self, tiny_checkpoint: Build) -> None:
        """Ids, labels and positions of what is explained, against one call of the library on the whole dialogue."""
        backbone = built(tiny_checkpoint("qwen2_5_vl"))
        model, image = backbone.asker.model, picture(60, 40)
        (shown,) = backbone._shown([image])
        question = backbone.asker.question(example("what is it?"), shown)
        processor = model.processor
        content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]
        text = processor.apply_chat_template(turns, tokenize=False)
        batch = processor(text=[text], images=[image], return_tensors="pt")
        assert list(question.ids) == batch["input_ids"][0].tolist()
        learnt = [label for label in question.labels if label != IGNORE]
        assert model.tokenizer.decode(learnt) == "a cat<|im_end|>"
        kinds = (batch["input_ids"] == model.image_token_id).int()
        positions, _ = model.model.model.get_rope_index(
            batch["input_ids"], mm_token_type_ids=kinds, image_grid_thw=batch["image_grid_thw"]
        )
        assert question.positions.tolist() == positions[:, 0].tolist()

    def test_paligemmas_answer_is_the_suffix_of_its_prompt(self, tiny_checkpoint: Build) -> None:
        backbone = built(tiny_checkpoint("paligemma"))
        model, image = backbone.asker.model, picture(60, 40)
        (shown,) = backbone._shown([image])
        question = backbone.asker.question(example("what is it?"), shown)
        asked = model.encoder.prompt(patches_turns(model, "what is it?"), lambda _: shown.inputs)
        assert question.ids[: len(asked)] == asked.ids
        text = "".join(part for turn in patches_turns(model, "what is it?") for part in turn.parts if isinstance(part, str))
        batch = model.processor(images=[image], text="<image>" + text, suffix="a cat", return_tensors="pt")
        assert list(question.ids) == batch["input_ids"][0].tolist()
        assert list(question.labels) == batch["labels"][0].tolist()

    def test_maps_lie_where_the_grids_say(self, tiny_checkpoint: Build) -> None:
        backbone = built(tiny_checkpoint("qwen2_5_vl"))
        model, image = backbone.asker.model, picture(60, 40)
        ((one, other),) = backbone.relevance([(image, [example("what is it?"), example("where?", "far away", "f")])])
        (shown,) = backbone._shown([image])
        question = backbone.asker.question(example("what is it?"), shown)
        ((row,),) = propagation.explain(model, [[question]], backbone.asker.settings)
        expected = heat.over_grids(row.double().numpy(), model.grids(image.size), image.size)
        assert np.array(one.heat) == pytest.approx(heat.without_padding(expected, SquarePad(60, 40)), rel=1e-9, abs=1e-12)
        assert np.array(one.heat).max() > 0
        assert np.array(one.heat) != pytest.approx(np.array(other.heat), rel=1e-3)

    def test_boxes_are_scored_on_the_map(self, tiny_checkpoint: Build) -> None:
        detector, image = plug.load("detectors", "grid"), picture(60, 40)
        ((plain,),) = built(tiny_checkpoint("qwen2_5_vl")).relevance([(image, [example("what?")])])
        ((mixed,),) = built(tiny_checkpoint("qwen2_5_vl"), detector=detector).relevance([(image, [example("what?")])])
        scores = heat.box_scores(plain.heat, mixed.regions.boxes, SquarePad(60, 40), "area")
        assert mixed.regions.scores == pytest.approx(scores, rel=1e-9)


def patches_turns(model: Any, question: str) -> Any:
    from cos_core.dialogue.prompts import dialogue

    return dialogue(model.profile, question, chain=False)


class TestRegions:
    @pytest.mark.parametrize("tokens", [1, 2])
    def test_crops_stand_in_the_pictures_place(self, tokens: int, tiny_checkpoint: Build) -> None:
        """Against features that are pooled and put in place by hand."""
        backbone = built(tiny_checkpoint("qwen3_vl"), "regions", tokens=tokens)
        model, image = backbone.asker.model, picture(60, 40)
        ((found,),) = backbone.relevance([(image, [example("what is it?")])])
        pooled, deep = [], []
        for box in found.regions.boxes:
            crop = crop_region(image, box, model.profile.crop_from, model.fill)
            inputs = model.picture(crop)
            (features,) = model.features([inputs])
            _, high, wide = (inputs.grid[0] // torch.tensor([1, 2, 2])).tolist()
            for whole, parts in ((features.pooler_output, pooled), (features.deepstack_features[0], deep)):
                cells = (torch.cat(list(whole)) if isinstance(whole, list | tuple) else whole).view(high, wide, -1)
                parts.append(middle(cells, tokens))
        count = len(found.regions.boxes) * tokens**2
        joined = type(features)(pooler_output=[torch.cat(pooled)], deepstack_features=[[torch.cat(deep)]])
        shown = type(backbone._shown([features]))(model.encoder.crops(count), joined)
        question = backbone.asker.question(example("what is it?"), shown)
        assert list(question.ids).count(model.image_token_id) == count
        places = np.flatnonzero(np.array(question.ids) == model.image_token_id)
        first = question.positions[0, places[0]]
        assert question.positions[:, places].tolist() == [[first] * count, [first] * count, list(range(first, first + count))]
        ((row,),) = propagation.explain(model, [[question]], backbone.asker.settings)
        expected = row.view(-1, tokens**2).sum(1)
        assert found.regions.scores == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
        assert expected.std() > 0

    def test_the_grid_that_shows_the_whole_crop(self, tiny_checkpoint: Build) -> None:
        """InternVL: tiles, then the whole; LLaVA-NeXT: the whole, then tiles with newlines among their tokens."""
        for name, last in (("internvl", True), ("llava_next", False)):
            model = built(tiny_checkpoint(name)).asker.model
            grids = model.grids((60, 40))
            numbers = torch.arange(sum(map(len, grids)))[:, None].double()
            cells = regions.whole(numbers, grids)[..., 0]
            start = len(numbers) - cells.numel() if last else 0
            assert cells.flatten().tolist() == list(range(start, start + cells.numel()))


def middle(cells: torch.Tensor, tokens: int) -> torch.Tensor:
    """The central six tenths of (rows, columns, hidden), in means of tokens x tokens parts of it."""
    rows, columns = ((size - max(1, round(0.6 * size))) // 2 for size in cells.shape[:2])
    part = cells[rows : cells.shape[0] - rows, columns : cells.shape[1] - columns]

    def parts(size: int) -> list[slice]:
        return [slice(i * size // tokens, -(-(i + 1) * size // tokens)) for i in range(tokens)]

    return torch.stack([part[y, x].mean((0, 1)) for y in parts(part.shape[0]) for x in parts(part.shape[1])])


class TestStage:
    def test_a_store_of_a_qwen_shaped_checkpoint(self, tiny_checkpoint: Build, tmp_path: Path) -> None:
        config = job(tmp_path, tiny_checkpoint("qwen2_5_vl"))
        made = run(config, SilentReporter())
        assert (made.counts["ok"], made.counts["failed"]) == (3, 0)
        maps = heats(config)
        assert len({grid.tobytes() for grid in maps.values()}) == 3
        assert all(grid.shape[0] == grid.shape[1] > 1 for grid in maps.values())
        assert all(0 <= side <= 1 for a in stored(config).values() if a.box for side in a.box.corners)
        again = run(config, SilentReporter())
        assert again.counts == {**made.counts, "new": 0}

    def test_another_pixel_budget_is_another_annotator(self, tiny_checkpoint: Build, tmp_path: Path) -> None:
        folder = tiny_checkpoint("qwen2_5_vl")
        config = job(tmp_path, folder)
        first = run(config, SilentReporter())
        usual = vision_input.of_folder(folder)
        assert usual is not None
        spelt = replace(config, max_pixels=usual.budget["max_pixels"], out=tmp_path / "spelt")
        assert run(spelt, SilentReporter()).fingerprint == first.fingerprint
        with pytest.raises(InputError, match="other settings"):
            run(replace(config, max_pixels=28 * 28 * 4), SilentReporter())
        coarse = replace(config, max_pixels=28 * 28 * 4, out=tmp_path / "coarse")
        run(coarse, SilentReporter())
        assert {name: grid.shape for name, grid in heats(coarse).items()} != {
            name: grid.shape for name, grid in heats(config).items()
        }

    def test_a_budget_that_does_not_exist(self, tiny_checkpoint: Build, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--max-tiles"):
            run(job(tmp_path, tiny_checkpoint("qwen2_5_vl"), max_tiles=2), SilentReporter())
        with pytest.raises(InputError, match="--max-pixels"):
            run(job(tmp_path, Path("miniature"), max_pixels=9), SilentReporter())
        with pytest.raises(InputError, match="lxmert"):
            job(tmp_path, Path("m"), backbone="lxmert", max_pixels=9)

    @pytest.mark.slow
    def test_killed_and_finished_by_two_workers(self, tiny_checkpoint: Build, tmp_path: Path) -> None:
        config = job(tmp_path, tiny_checkpoint("qwen2_5_vl"), (1, 2, 3, 1) * 5, batch_images=3)
        whole = run(config, SilentReporter())
        assert whole.counts["failed"] == 0
        killed = replace(config, out=tmp_path / "killed")
        assert kill(killed, 6, a_worker=False)
        finished = run(replace(killed, scale=RunnerConfig(workers=2)), SilentReporter())
        assert (finished.counts["ok"], finished.fingerprint) == (whole.counts["ok"], whole.fingerprint)
        assert 0 < finished.counts["new"] < whole.counts["new"]
        assert exported(killed) == exported(config)
        assert [(name, grid.tolist()) for name, grid in heats(killed).items()] == [
            (name, grid.tolist()) for name, grid in heats(config).items()
        ]


class TestWithoutTraining:
    def asked(self, root: Path, folder: Path, **options: Any) -> InferConfig:
        write_data(root, (1, 1))
        settings = {"roi": "relevance", "device": "cpu", "max_new_tokens": 6, **options}
        return InferConfig(folder, out=root / "answers.jsonl", data=root / "data.json", images=root / "images", **settings)

    def test_relevance_shares_the_engines_model(self, tiny_checkpoint: Build, tmp_path: Path) -> None:
        config = self.asked(tmp_path, tiny_checkpoint("qwen2_5_vl"))
        engine: Any = build_engine(config)
        found: Any = finder(config, engine)
        assert found.backbone.asker.model is engine.loaded
        made = infer(config, SilentReporter(), engine)
        assert (made.counts["ok"], made.counts["failed"]) == (2, 0)
        lines = config.out.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2

    @pytest.mark.parametrize("name", ["blip_2", "glm4v"])
    def test_no_grid_is_refused_before_weights_are_read(
        self, name: str, tiny_checkpoint: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tiny_checkpoint(name)
        monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: pytest.fail("weights were read"))
        for backbone in ("patches", "regions"):
            with pytest.raises(InputError, match="picture"):
                run(job(tmp_path, folder, backbone=backbone), SilentReporter())
        with pytest.raises(InputError, match="picture"):
            setting(self.asked(tmp_path, folder))


def test_memory_that_runs_out_costs_no_result(tiny_checkpoint: Build) -> None:
    backbone = built(tiny_checkpoint("qwen2_5_vl"))
    asked = [(picture(60, 40, n), [example(f"what is {k}?", name=f"{n}{k}") for k in range(n)]) for n in (1, 3, 1, 2)]
    expected = backbone.relevance(asked)
    layer = backbone.asker.model.decoder.layers[1]
    with short_of_memory(layer, lambda entered: entered.shape[0] > 1) as short:
        found = backbone.relevance(asked)
    assert short.failed > 0
    for group, of_group in zip(found, expected, strict=True):
        for one, other in zip(group, of_group, strict=True):
            assert np.array(one.heat) == pytest.approx(np.array(other.heat), rel=1e-9, abs=1e-12)


def test_what_was_prepared_gives_the_same_to_the_bit(tiny_checkpoint: Build) -> None:
    for name in ("patches", "regions"):
        backbone = built(tiny_checkpoint("qwen2_5_vl"), name)
        asked = [(picture(60, 40), [example("what?")]), (picture(41, 77, 2), [example("why?", "so")])]
        expected = backbone.relevance(asked)
        for image, _ in asked:
            backbone.prepare(image, "a.png")
        assert backbone.ahead.held > 0
        assert backbone.relevance(asked) == expected
        assert backbone.ahead.held == 0


def test_a_picture_of_unknown_size_is_kept_if_it_fits() -> None:
    ahead: Ahead[str] = Ahead(most=10)
    one, two, three = (picture(9, 9, n) for n in range(3))
    ahead.put(one, len, lambda: "seven77")
    ahead.put(two, len, lambda: "four")
    ahead.put(three, len, lambda: "3rd")
    assert ahead.held == 10
    ahead.put(two, len, lambda: pytest.fail("made, though there is no room for anything"))
    assert (ahead.take(one), ahead.take(two), ahead.take(three), ahead.held) == ("seven77", None, "3rd", 0)


def test_the_settings_of_a_model_are_those_of_its_folder(tiny_checkpoint: Build) -> None:
    folder = tiny_checkpoint("qwen2_5_vl")
    budget = PixelBudget(max_pixels=28 * 28 * 4)
    backbone = patches.build(str(folder), device="cpu", budget=budget)
    of_folder = vision_input.of_folder(folder, budget)
    assert of_folder is not None
    assert of_folder.settings().items() <= dict(backbone.settings).items()
    assert vision_input.of_encoder(backbone.asker.model.encoder).settings() == of_folder.settings()


def test_the_settings_of_llava_are_as_they_were() -> None:
    backbone = patches.build("miniature", device="cpu", dtype="float32")
    options = {"contrast", "clip", "smooth", "score", "detector"}
    assert set(backbone.settings) == options | {
        *("name", "model", "dtype", "profile", "dialogue", "target", "last_layers"),
    }
    assert backbone.settings["model"] == hub.fingerprint(hub.resolve("miniature"))


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_every_family_with_a_grid(name: str, tiny_checkpoint: Build, tmp_path: Path) -> None:
    """Both backbones, the same alone as together; and the untrained region for an answer."""
    folder = tiny_checkpoint(name, shape="other")
    loaded = None
    asked = [
        (picture(60, 40), [example("what?"), example("where?", "far away", "f")]),
        (picture(45, 70, 2), [example("why?", "so")]),
    ]
    windows = plug.load("detectors", "grid", windows=[[0.5, 2]])
    for backbone, options in (("patches", {}), ("regions", {"detector": windows})):
        made: Any = built(folder, backbone, **options)
        loaded = loaded or made.asker.model
        together = made.relevance(asked)
        for (image, examples), group in zip(asked, together, strict=True):
            for one, found in zip(examples, group, strict=True):
                ((alone,),) = made.relevance([(image, [one])])
                assert numbers(alone) == pytest.approx(numbers(found), rel=1e-9, abs=1e-12)
                assert np.max(numbers(found)) > 0
    assert vision_input.of_encoder(loaded.encoder) == vision_input.of_folder(folder)
    config = replace(job(tmp_path, folder), batch_images=1)
    made_store = run(config, SilentReporter())
    assert (made_store.counts["ok"], made_store.counts["failed"]) == (3, 0), failures(config)
    answers = infer(TestWithoutTraining().asked(tmp_path, folder), SilentReporter())
    assert (answers.counts["ok"], answers.counts["failed"]) == (2, 0)


def numbers(found: Any) -> list[float]:
    return list(found.regions.scores) if found.regions is not None else [value for row in found.heat for value in row]


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_GRIDS)
def test_every_family_without_a_grid_is_refused(name: str, tiny_checkpoint: Build) -> None:
    for backbone in ("patches", "regions"):
        with pytest.raises(InputError):
            built(tiny_checkpoint(name), backbone)


def test_every_family_is_either_annotated_with_or_refused() -> None:
    known = {name for name in families.names() if type(families.of_type(name)).grids is not families.Family.grids}
    assert known == {*GRIDS, "llava"}
    assert all(families.of_type(name).no_grid for name in families.names() if name not in known)
