"""The bill of a run (`cos train --dry-run`): from a configuration alone, for any family, with memory, money and advice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from training_world import NO_SIZE, Ears, config, make_world

from cos_cli import main
from cos_core import training
from cos_core.data.released import Square
from cos_core.dialogue.cropping import crop_region
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.models import shapes
from cos_core.training import cost_estimate, inputs, planned
from cos_core.training.config import TrainConfig
from cos_core.training.cost_estimate import Machine
from cos_core.training.dataset import TrainDataset, lengths_of
from cos_core.training.picture_lengths import crop_size

GIB = 2**30
MACHINE = Machine(devices=1, device=None, zero=0, offload=False, half=True, recompute=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def bill(world: Path, **options: Any) -> tuple[dict[str, Any], Ears]:
    ears = Ears()
    made = config(world, world / "out", dry_run=True, max_steps=None, **options)
    return training.run(made, ears).results["bill"], ears


def settings_alone(checkpoint: Path, to: Path, *more: str) -> Path:
    to.mkdir()
    for name in ("config.json", *more):
        shutil.copy(checkpoint / name, to / name)
    return to


def test_a_hub_id_is_priced_before_anything_is_downloaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"data": world / "data.json", "images": world / "images", "store": world / "store", "out": tmp_path / "out"}
    words = [word for option, value in places.items() for word in (f"--{option}", str(value))]
    words += ["--model", "Qwen/Qwen2.5-VL-32B-Instruct", "--processes", "8", "--price-hour", "1.5", "--device", "cpu"]
    assert main.run(["train", *words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]["bill"]
    assert found["weights"]["total"] == 33_452_718_336
    assert found["price"] == round(found["hours"] * 8 * 1.5, 2)
    assert (found["price_hour"], found["devices"]) == (1.5, 8)
    assert not found["fits"], "one and a half times 80 GB are its weights alone"
    assert found["fits_with"], "cut over eight devices, it does"
    assert all(value <= found["device_gib"] for value in found["fits_with"].values())
    assert len(found["notes"]) == 2, "the settings are cos's own, and there is no tokenizer"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_shipped_checkpoint_has_a_bill(world: Path) -> None:
    for name in shapes.names():
        found, _ = bill(world, model=name, lora=8, max_length=20_000)
        assert found["tokens"] > found["image_tokens"] > 0, name
        assert found["hours"] > 0


def test_the_bill_of_a_configuration_alone(tiny_checkpoint: Callable[..., Path], world: Path, tmp_path: Path) -> None:
    """Pictures are counted as with the whole checkpoint; texts from their characters, which is said."""
    whole = tiny_checkpoint("qwen2_5_vl")
    exact, _ = bill(world, model=str(whole))
    alone, ears = bill(world, model=str(settings_alone(whole, tmp_path / "alone", "processor_config.json")))
    for name in ("weights", "samples", "pictures", "image_tokens", "memory_gib_per_device"):
        if name != "memory_gib_per_device":
            assert alone[name] == exact[name], name
    assert "notes" not in exact
    assert len(alone["notes"]) == 1
    assert any("not checked" in line for line in ears.warnings)
    # A byte is a token here, so that the guess from characters is far off; that of pictures is not.
    assert alone["tokens"] < exact["tokens"]


def test_the_tokens_of_another_family_are_those_of_its_samples(
    tiny_checkpoint: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    """Without the weights, too."""
    for name in ("qwen2_5_vl", "idefics3"):
        whole = tiny_checkpoint(name)
        bare = tmp_path / name
        shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
        found, _ = bill(world, model=str(bare), max_length=5000)
        made = config(world, tmp_path / "out", model=str(whole), max_length=5000)
        policy = plug.load("policies", made.rule)
        metadata = inputs.checkpoint_metadata(made, policy, inputs.start_checkpoint(made))
        with inputs.read(made, policy) as data:
            samples = TrainDataset(data.samples, metadata.recipe)
            items = [samples[key] for key in range(len(samples))]
            about = [samples.length(index, 0) for index in range(len(samples))]
        lengths = [len(item.encoded) for item in items]
        images = sum(item.encoded.ids.count(metadata.recipe.encoder.image_token_id) for item in items)
        assert found["tokens"] == pytest.approx(sum(lengths), rel=0.02)
        assert found["image_tokens"] == pytest.approx(images, rel=0.02)
        assert found["pictures"] == sum(len(item.pictures) for item in items)
        # Sorted by what is known without opening a picture, samples stand nearly as by their lengths.
        order = sorted(range(len(items)), key=about.__getitem__)
        assert [lengths[i] for i in order[-2:]] == sorted(lengths)[-2:]


def test_pictures_that_cannot_be_read_are_counted(tiny_checkpoint: Callable[..., Path], world: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for path in list((world / "images").glob("*.png"))[1:]:
        shutil.copy(path, tmp_path / "images")
    model = str(tiny_checkpoint("qwen2_5_vl"))
    found, _ = bill(world, model=model, images=tmp_path / "images", check="off")
    assert [note[:6] for note in found["notes"]] == ["1 of 4"]


def test_crops_are_as_large_as_they_will_be_cut() -> None:
    picture = Image.new("RGB", (200, 100))
    regions = [Box(0.1, 0.2, 0.5, 0.9), Box(0.1, 0.3, 0.5, 0.6, "square"), Square(10, 20, 50)]
    for crop_from in ("image", "canvas"):
        for region in regions:
            box = region if isinstance(region, Box) else region.box(*picture.size)
            cut = crop_region(picture, box, crop_from, (0, 0, 0))  # type: ignore[arg-type]
            assert crop_size(region, picture.size, crop_from) == cut.size  # type: ignore[arg-type]
    assert crop_size(Box(0, 0, 1, 0.1, "square"), (200, 100), "image") == (200, 100), "a box in the padding is none"


def test_headers_are_read_only_where_a_pictures_size_counts(
    tiny_checkpoint: Callable[..., Path], world: Path, tmp_path: Path
) -> None:
    for name, one_size in (("llava", True), ("gemma3", True), ("qwen2_5_vl", False), ("internvl", False)):
        made = config(world, tmp_path / "out", model=str(tiny_checkpoint(name)), dry_run=True)
        model = planned.planned(made, plug.load("policies", made.rule), planned.checkpoint(made))
        assert lengths_of(model.recipe).one_size == one_size == model.size.one_size, name


# --- memory, disk and advice


def test_memory_by_hand() -> None:
    """A model of 100 weights a layer, so that each byte counts."""
    size = replace(
        NO_SIZE, language=1000 * GIB, vision=20 * GIB, projector=10 * GIB, linear=800 * GIB, features=3 * GIB, layers=2,
        hidden=8, vocabulary=32,
    )  # fmt: skip
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"), batch_size=1)

    def parts(machine: Machine = MACHINE, **options: Any) -> list[float]:
        found = cost_estimate.memory(size, machine, replace(made, **options), 0)
        return [found[name] for name in ("weights", "gradients", "optimiser")]

    assert parts() == [4120, 4000, 8000]
    assert parts(train_projector=True) == [4120, 4040, 8080]
    assert parts(replace(MACHINE, devices=4, zero=2)) == [2060, 500, 3000]
    assert parts(replace(MACHINE, devices=4, zero=3)) == [515, 500, 3000]
    # Adapters of rank 2 have 6 weights of GiB; below them bfloat16, or 4 bits in the decoder's layers and float32 elsewhere.
    assert parts(lora=2) == [2060 + 24, 24, 48]
    assert parts(lora=2, qlora=True) == pytest.approx([0.516 * 800 + 4 * 230 + 24, 24, 48])
    assert parts(replace(MACHINE, devices=2, zero=3), lora=2) == [(2060 + 12) / 2, 6, 36]
    logits = (
        cost_estimate.memory(size, MACHINE, made, GIB)["activations"]
        - cost_estimate.memory(size, MACHINE, replace(made, liger=True), GIB)["activations"]
    )
    assert logits == 32 * 8, "in float32, with their gradient"


def test_disk_by_hand() -> None:
    size = replace(NO_SIZE, language=100 * GIB, vision=0, projector=0, features=GIB)
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"))
    assert cost_estimate.disk(size, made, half=True) == 2 * (400 + 800) + 200
    assert cost_estimate.disk(size, replace(made, deepspeed="zero3"), half=True) == 2 * (400 + 1200) + 200
    assert cost_estimate.disk(size, replace(made, lora=3), half=True) == 2 * (12 + 24) + 200 + 12, "the adapters alone"


def test_advice_fits_and_is_none_where_nothing_does() -> None:
    size = replace(NO_SIZE, language=8 * GIB, vision=GIB, linear=7 * GIB, features=2**21, layers=1, hidden=8, vocabulary=8)
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"), batch_size=4)
    eight = replace(MACHINE, devices=8, gib=40.0)
    found = cost_estimate.smaller(size, eight, made, 100)
    assert list(found) == ["--deepspeed zero2", "--lora 128", "--lora 128 --qlora"]
    assert all(value <= 40 for value in found.values())
    assert list(cost_estimate.smaller(size, replace(MACHINE, gib=25.0), made, 100)) == [
        "--deepspeed zero3_offload",
        "--lora 128",
        "--lora 128 --qlora",
    ]
    assert cost_estimate.smaller(size, replace(MACHINE, gib=0.01), made, 100) == {}
