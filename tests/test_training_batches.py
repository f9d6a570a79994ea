"""The order of samples, and what a batch of them is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from training_world import (
    IMAGE_TOKENS,
    make_world,
    recipe,
    samples,
)

from cos_core.dialogue.encoding import IGNORE
from cos_core.training.dataset import TrainDataset


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_permutation_an_epoch() -> None:
    from cos_core.training.sample_order import BatchSizes, SampleOrder

    order = SampleOrder(100, 3, BatchSizes(1, 1, 1))
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == list(range(100))
    assert sorted(second) == list(range(100, 200))
    assert [k - 100 for k in second] != first
    assert list(SampleOrder(100, 3, BatchSizes(1, 1, 1))) == first
    assert list(SampleOrder(100, 4, BatchSizes(1, 1, 1))) != first


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_depends_on_the_global_batch_alone(grouped: bool) -> None:
    """Eight samples a step on one device or on four: the same in every step, sorted inside it; fillers only at the end."""
    from cos_core.training.sample_order import BatchSizes, SampleOrder

    def length(index: int, _epoch: int) -> int:
        return 100 + index * 37 % 50

    one, four = BatchSizes(2, 2, 8), BatchSizes(2, 8, 8)
    alone = list(SampleOrder(45, 0, one, length, grouped))
    together = list(SampleOrder(45, 0, four, length, grouped))
    assert sorted(alone) == list(range(45))
    assert together[:45] == alone
    assert len(together) == len(SampleOrder(45, 0, four, length, grouped)) == 48
    assert all(key < 0 and 0 <= -key - 1 < 45 for key in together[45:])
    steps = [[length(key, 0) for key in alone[i : i + 8]] for i in range(0, 45, 8)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    plain = list(SampleOrder(45, 0, one))
    if not grouped:
        assert [set(alone[i : i + 8]) for i in range(0, 45, 8)] == [set(plain[i : i + 8]) for i in range(0, 45, 8)]
    else:
        spread = sum(max(step) - min(step) for step in steps)
        unsorted = [[length(key, 0) for key in plain[i : i + 8]] for i in range(0, 45, 8)]
        assert spread < sum(max(step) - min(step) for step in unsorted)


def test_batches_are_padded_on_the_right(world: Path) -> None:
    from cos_core.models import llava
    from cos_core.training.collate import Collator, empty_picture

    model = llava.load(world / "model", device="cpu")
    found = samples(world, "from_single_question")
    data = TrainDataset(found, recipe(world, encoder=model.encoder))
    collate = Collator(model.encoder, 0)
    keys = (0, 4, 2)
    items = [data[key] for key in keys]
    kept = TrainDataset(found, recipe(world))
    pictures = [picture for key in keys for picture in kept[key].pictures]
    batch = collate(items)
    for row, item in enumerate(items):
        size = len(item.encoded)
        assert batch["input_ids"][row, :size].tolist() == list(item.encoded.ids)
        assert batch["labels"][row, :size].tolist() == list(item.encoded.labels)
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert set(batch["labels"][row, size:].tolist()) <= {IGNORE}
    assert batch["pixel_values"].equal(model.pixels(pictures))
    assert "pixel_values" not in collate([data[4]])
    assert (batch["contents"].pictures, batch["contents"].image_tokens) == (4, 4 * IMAGE_TOKENS)
    assert batch["contents"].tokens == sum(len(item.encoded) for item in items)
    # ZeRO-3 needs a picture in every batch: one stands behind the text, where nothing attends to it.
    stand_in = replace(collate, stand_in=empty_picture(model.encoder))([data[4]])
    assert stand_in["pixel_values"].shape[0] == 1
    assert int((stand_in["input_ids"] == model.image_token_id).sum()) == IMAGE_TOKENS
    assert not stand_in["attention_mask"][stand_in["input_ids"] == model.image_token_id].any()
    assert "pixel_values" in batch


def test_quick_pixels_are_the_processors_to_the_bit() -> None:
    import numpy as np
    from transformers import CLIPImageProcessorPil

    from cos_core.files.images import square_pad
    from cos_core.models.pixels import processed

    random = np.random.default_rng(0)
    sizes = [(97, 61), (61, 97), (53, 53), (500, 3), (3, 500), (336, 200), (1001, 337), (1, 1), (2, 1)]
    pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    fill = (122, 116, 104)
    for size in (56, 336):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
        )
        plain = processor([square_pad(picture, fill) for picture in pictures], return_tensors="pt")["pixel_values"]
        assert processed(processor, pictures, fill).equal(plain)
