"""Training of every family whose dialogue continues itself: what is trained, what a batch is, what is saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image
from training_world import Ears, config, log_of, make_scenes

from cos_core import training
from cos_core.dialogue import prompts
from cos_core.dialogue.encoding import IGNORE
from cos_core.engines.hf import HfEngine
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.files.images import open_image
from cos_core.interfaces import Request, SilentReporter
from cos_core.models import families, general, loading, pretrained, vision_input
from cos_core.models.general_encoder import GeneralEncoder
from cos_core.models.loaded import LoadedModel
from cos_core.models.model_size import built
from cos_core.training import adapters, inputs, parts
from cos_core.training.collate import CONTENTS, Collator, empty_picture
from cos_core.training.dataset import TrainingItem, Views
from cos_core.training.loading import freeze
from cos_core.types import Turn

Checkpoint = Callable[..., Path]
TRAINED = tuple(name for name in tiny_families.WITH_DIALOGUE if name != "paligemma")
TOWERS = {"idefics3": "model.vision_model", "smolvlm": "model.vision_model"}
TOWERS |= dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "model.visual")
PROJECTORS = {
    "idefics3": ["model.connector"],
    "smolvlm": ["model.connector"],
    "qwen2_vl": ["model.visual.merger"],
    "qwen2_5_vl": ["model.visual.merger"],
    "qwen3_vl": ["model.visual.merger", "model.visual.deepstack_merger_list.0"],
}
DECODERS = dict.fromkeys(("idefics3", "smolvlm"), "model.text_model")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("world"))


def settings(world: Path, model: Path, out: Path, **changes: Any) -> training.TrainConfig:
    options = {"data": world / "questions.jsonl", "model": str(model), "max_steps": 3, "global_batch": 4, "check": "off"}
    return config(world, out, **{**options, **changes})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


# What is trained


@pytest.mark.parametrize("name", TRAINED)
def test_the_language_model_is_trained_and_the_projector_when_asked(tiny_checkpoint: Checkpoint, name: str) -> None:
    folder = tiny_checkpoint(name)
    family = families.of_config(json.loads((folder / "config.json").read_text()))
    model = built(pretrained.any_configuration(str(folder)))
    decoder, tower = DECODERS.get(name, "model.language_model"), TOWERS.get(name, "model.vision_tower")
    projectors = PROJECTORS.get(name, ["model.multi_modal_projector"])

    def within(weight: str, places: Sequence[str]) -> bool:
        return any(weight.startswith(place + ".") for place in places)

    parts.check(model, family)
    for projector in (False, True):
        freeze(model, family, projector)
        learnt = {weight for weight, value in model.named_parameters() if value.requires_grad}
        places = [decoder, "lm_head", *(projectors if projector else [])]
        assert learnt == {weight for weight, _ in model.named_parameters() if within(weight, places)}
        assert not any(within(weight, [tower]) for weight in learnt - {w for w in learnt if within(w, projectors)})
    asked = training.TrainConfig(Path("d"), Path("i"), "m", Path("o"), lora=4, train_projector=True)
    lora = adapters.lora_settings(model, asked, family)
    linear = {each for each, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {each for each in linear if re.fullmatch(lora.target_modules, each)} == {e for e in linear if within(e, [decoder])}
    assert lora.modules_to_save == projectors
    beside = parts.beside_the_decoder(model)
    assert not any(within(each + ".", [decoder]) for each in beside)
    assert all(within(each + ".weight", [decoder]) != within(each + ".weight", beside) for each in linear)


# Batches


def picture(width: int, height: int, colour: str = "red") -> Image.Image:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste(colour, (width // 4, height // 4, width // 2, height // 2))
    return image


def item(encoder: GeneralEncoder, turns: Sequence[Turn], **images: Image.Image) -> TrainingItem:
    views = Views(encoder, dict(images))  # type: ignore[arg-type]
    encoded = encoder.encode(turns, views)
    return TrainingItem(encoded, views.shown(encoded.slots))


def items(encoder: GeneralEncoder) -> list[TrainingItem]:
    """Two pictures, one, and none, of unlike lengths; more positions are padded than a sliding window has."""
    profile = encoder.profile
    box = "[0.1, 0.2, 0.3, 0.4]"
    first = prompts.dialogue(profile, "which of them? " * 4, box_text=box, answer="a red door")
    second = prompts.dialogue(profile, "one?", chain=False, answer="yes")
    third = prompts.dialogue(profile, "b?", box_text=box, answer="no")
    return [
        item(encoder, first, full=picture(120, 80), roi=picture(40, 61)),
        item(encoder, second, full=picture(200, 60)),
        item(encoder, prompts.text_dialogue([("hi", "ho")])),
        item(encoder, third, full=picture(61, 100), roi=picture(33, 33, "blue")),
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_batch_is_that_of_its_rows(tiny_checkpoint: Checkpoint, name: str) -> None:
    """Nothing of another row, of padding or of another row's pictures reaches a loss; gradients are numbers."""
    folder = str(tiny_checkpoint(name))
    encoder = general.encoder_of(folder)
    net, _ = pretrained.any_network(folder, dtype=torch.float32)
    rows = items(encoder)
    pad = encoder.tokenizer.pad_token_id

    def loss(batch: dict[str, Any]) -> tuple[Any, int]:
        del batch[CONTENTS]
        return net(**batch).loss, int((batch["labels"][:, 1:] != IGNORE).sum())

    whole, count = loss(Collator(encoder, pad)(rows))
    whole.backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters() if weight.grad is not None)
    with torch.no_grad():
        alone = [loss(Collator(encoder, pad)([row])) for row in rows]
        hidden, _ = loss(Collator(encoder, pad, empty_picture(encoder))([rows[2]]))
    assert count == sum(number for _, number in alone)
    assert float(whole) == pytest.approx(sum(float(each) * number for each, number in alone) / count, rel=2e-6)
    # A picture that is hidden behind a text changes nothing.
    assert float(hidden) == pytest.approx(float(alone[2][0]), rel=1e-6)


# Runs


def test_a_family_learns_and_its_frozen_weights_stay(tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path) -> None:
    folder, out = tiny_checkpoint("qwen2_5_vl"), tmp_path / "out"
    done = training.run(settings(world, folder, out, max_steps=12, learning_rate=3e-3, epochs=4), SilentReporter())
    losses = [record["loss"] for record in log_of(out)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.equal(after[name]) == name.startswith("visual."), name
    assert done.inputs["model"]["family"] == "qwen2_5_vl"
    assert done.inputs["model"]["pixel_budget"].keys() == {"min_pixels", "max_pixels"}


def ask(folder: Path, world: Path, **options: Any) -> str:
    model = loading.load(folder, device="cpu", dtype="float32")
    assert isinstance(model, LoadedModel)
    shown = open_image(world / "images", "7-00001.png")
    reply = HfEngine(model).generate([Request(prompts.dialogue(model.profile, "What?", chain=False), {"full": shown}, 6)])[0]
    assert reply.error is None
    return reply.text


@pytest.mark.slow
def test_a_pixel_budget_decides_and_is_written_down(tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path) -> None:
    """In both layouts of the processor's files, and in what the run is told apart by."""
    budgets: dict[str, dict[str, int]] = {"qwen2_5_vl": {"max_pixels": 1000}, "llava_next": {"max_tiles": 2}}
    for (name, budget), layout in zip(budgets.items(), ("published", "saved"), strict=True):
        folder, out, ears = tiny_checkpoint(name, layout=layout), tmp_path / name, Ears()
        made = settings(world, folder, out, max_steps=1, **budget)
        training.run(made, ears)
        said = vision_input.of_folder(out)
        assert said == vision_input.of_folder(folder, made.pixel_budget)
        assert said != vision_input.of_folder(folder)
        assert any("whoever asks the checkpoint shows them alike" in warning for warning in ears.warnings)
        checkpoint = inputs.start_checkpoint(made)
        with pytest.raises(InputError, match="other settings"):
            training.run(settings(world, folder, out, max_steps=1), SilentReporter())
        assert checkpoint.general


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_family_trains_and_its_result_is_asked(
    tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path, name: str
) -> None:
    import transformers

    folder, ears = tiny_checkpoint(name), Ears()
    whole, lora = tmp_path / "whole", tmp_path / "lora"
    training.run(settings(world, folder, whole, max_steps=2, check="sample", max_faults=0), ears)
    ask(whole, world)
    adapted = {"max_steps": 1, "lora": 4, "train_projector": True, "gradient_checkpointing": True}
    training.run(settings(world, folder, lora, **adapted), SilentReporter())
    assert log_of(lora)[0]["loss"] == pytest.approx(log_of(whole)[0]["loss"], rel=1e-5)
    for out in (whole, lora):
        net, info = transformers.AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        for file in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "processor_config.json"):
            # LLaVA-1.5's are written after its profile.
            assert name == "llava" or (folder / file).read_bytes() == (out / file).read_bytes()
        assert net.config.model_type == json.loads((folder / "config.json").read_text())["model_type"]
    if name != "llava":
        before, after = tensors(folder), tensors(whole)
        moved = {key for key, tensor in before.items() if not tensor.equal(after[key])}
        assert moved
        assert not any("vi" in key.split(".")[0] or "projector" in key or "connector" in key for key in moved)
    assert manifest.read(whole).counts["failed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_adapters_over_weights_in_four_bits(tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path, name: str) -> None:
    """Only the decoder's linear layers move; all else is as it was, in the format that it is stored in."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights need the package of that name; make setup installs it")
    folder, out = tiny_checkpoint(name), tmp_path / "out"
    training.run(settings(world, folder, out, lora=4, qlora=True), SilentReporter())
    layers = parts.linear_layers(pretrained.any_network(str(folder), dtype=torch.float32)[0])
    before, after = tensors(folder), tensors(out)
    moved = {key for key, tensor in before.items() if not tensor.equal(after[key])}
    decoder = [key for key in before if "layers." in key and "vi" not in key.split(".")[0]]
    assert moved == {key for key in decoder if key.split(".")[-2] in layers and key.endswith(".weight")}
    assert {tensor.dtype for tensor in after.values()} == {tensor.dtype for tensor in before.values()}


# Refusals


@pytest.mark.parametrize("name", ["paligemma", "blip_2"])
def test_a_family_without_a_dialogue_is_refused_before_its_weights_are_read(
    tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match="cannot be trained on Chain-of-Spot dialogues"):
        inputs.start_checkpoint(settings(world, tiny_checkpoint(name), tmp_path / "out"))


def test_what_goes_with_llava_alone_is_refused(tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path) -> None:
    crops = settings(world, tiny_checkpoint("gemma3"), tmp_path / "out", store=None, annotator="regions")
    with pytest.raises(InputError, match=r"LLaVA-1\.5 alone"):
        training.run(crops, SilentReporter())
    with pytest.raises(InputError, match="no setting of Gemma 3"):
        training.run(settings(world, tiny_checkpoint("gemma3"), tmp_path / "out", max_tiles=3), SilentReporter())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glm4v", "aya_vision"])
def test_a_family_without_a_file_is_trained_where_the_library_names_its_parts(
    tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path, name: str
) -> None:
    folder = tiny_checkpoint(name)
    training.run(settings(world, folder, tmp_path / "out"), SilentReporter())
    assert len(log_of(tmp_path / "out")) == 3
    with pytest.raises(InputError, match="its projector"):
        training.run(settings(world, folder, tmp_path / "more", train_projector=True), SilentReporter())


def test_pictures_without_tokens_are_refused(tiny_checkpoint: Checkpoint, world: Path, tmp_path: Path) -> None:
    """Llama 3.2 Vision reads pictures through cross-attention."""
    with pytest.raises(InputError, match="cross-attention"):
        training.run(settings(world, tiny_checkpoint("mllama"), tmp_path / "out"), SilentReporter())
