"""The annotator's fine-tuning: it sees what the backbone shows, learns answers alone, and says afterwards what it was shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training_world import BOX, SIZES, collected, config, log_of, make_world, recipe, weights

from cos_core import training
from cos_core.data.datasets import read_examples
from cos_core.errors import InputError
from cos_core.files import manifest, plug
from cos_core.files.images import open_image
from cos_core.interfaces import Detector, SilentReporter
from cos_core.models import checkpoint_info
from cos_core.training import TrainConfig
from cos_core.training.dataset import TrainDataset, draw
from cos_core.types import Regions

FEW = {"windows": [[0.5, 2], [0.8, 1]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def annotator(world: Path, out: Path, tokens: int = 2, **changes: object) -> TrainConfig:
    own = {"store": None, "annotator": "regions", "detector": "grid", "detector_options": FEW, "region_tokens": tokens}
    return replace(config(world, out), **{**own, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tuned(world: Path) -> Path:
    training.run(annotator(world, world / "tuned"), SilentReporter())
    return world / "tuned"


@pytest.mark.parametrize("tokens", [1, 2])
def test_training_shows_what_the_backbone_shows(world: Path, tokens: int) -> None:
    """Ids, labels and visual features of a training batch are those of the backbone, whose own forward gives the same loss."""
    import torch

    from cos_core.training.collate import Collator
    from cos_core.training.region_crops import RegionCrops, regions_as_tokens

    detector = plug.load("detectors", "grid", **FEW)
    backbone = plug.load("backbones", "regions", model=str(world / "model"), detector=detector, device="cpu", tokens=tokens)
    model = backbone.asker.model
    made = recipe(world, "none", region_crops=RegionCrops(detector, tokens), encoder=model.encoder)
    data = TrainDataset(collected(read_examples(world / "data.json"), made.policy, None).samples, made)
    items = [data[key] for key in range(len(SIZES))]
    batch = Collator(model.encoder, 0)(items)
    assert batch["contents"].pictures == sum(len(item.pictures) for item in items) == len(batch["pixel_values"])
    del batch["contents"]
    with torch.no_grad(), regions_as_tokens(model, made.region_crops):
        found = model.model(**batch)
    losses = []
    for row, (sample, item) in enumerate(zip(data.samples, items, strict=True)):
        example = sample.questions[draw(0, sample.id, 0, 3)]
        picture = open_image(world / "images", str(sample.image))
        _, crops = backbone._proposed(picture, str(sample.image))
        shown = backbone._shown(backbone._pooled([crops])[0])
        question = backbone.asker.question(example, shown)
        assert (item.encoded.ids, item.encoded.labels) == (question.ids, question.labels)
        ids = torch.tensor([question.ids])
        with torch.no_grad():
            logits = model.model(inputs_embeds=model.embed(ids, shown.features)).logits[0]
        size = len(question.ids)
        assert found.logits[row, :size].allclose(logits, atol=1e-4)
        losses.append((logits[:-1], torch.tensor(question.labels[1:])))
    flat = torch.cat([logits for logits, _ in losses]), torch.cat([labels for _, labels in losses])
    assert float(found.loss) == pytest.approx(float(torch.nn.functional.cross_entropy(*flat, ignore_index=-100)), rel=1e-5)
    # The hook is gone: the same pixels are pictures again.
    assert model.image_features(batch["pixel_values"][:1]).shape[1] == model.image_tokens


def test_an_annotator_learns_answers_and_says_what_it_was_shown(world: Path, tuned: Path) -> None:
    before, after = weights(world / "model"), weights(tuned)
    for name, tensor in before.items():
        assert tensor.equal(after[name]) == ("vision_tower" in name or "multi_modal_projector" in name), name
    done = manifest.read(tuned)
    assert done.counts == {"ok": 5, "failed": 0, "skipped": 0}
    assert done.inputs.keys() == {"data", "model"}
    made = checkpoint_info.annotator_provenance(str(tuned))
    assert made is not None
    assert (made["backbone"], made["region_tokens"], made["steps"], made["samples"]) == ("regions", 2, 4, 5)
    assert made["detector"]["windows"] == [[0.5, 2], [0.8, 1]]
    assert made["parent"]["fingerprint"] == done.inputs["model"]["fingerprint"]
    assert made["data"]["sha256"] == manifest.file_digest(world / "data.json")
    assert checkpoint_info.annotator_provenance(str(world / "model")) is None
    (tuned / "torn").mkdir()
    (tuned / "torn" / checkpoint_info.ANNOTATOR_FILE).write_text("{}")
    with pytest.raises(InputError, match="does not say how the annotator was made"):
        checkpoint_info.annotator_provenance(str(tuned / "torn"))


def test_another_sight_than_the_tuned_one_is_named(tuned: Path) -> None:
    made = checkpoint_info.annotator_provenance(str(tuned))
    assert made is not None
    grid = plug.load("detectors", "grid", **FEW)
    assert checkpoint_info.annotator_differences(made, backbone="regions", detector=plug.described(grid), region_tokens=2) == []
    other = plug.described(plug.load("detectors", "grid", windows=((0.4, 3),)))
    said = checkpoint_info.annotator_differences(made, backbone="patches", detector=other, region_tokens=1)
    assert [text.split(" with ")[1].split(" ")[0] for text in said] == ["backbone", "detector", "region_tokens"]
    assert "0.4" in said[1]


def test_other_settings_of_the_detector_are_another_run(world: Path, tuned: Path) -> None:
    assert training.run(annotator(world, tuned), SilentReporter()) == manifest.read(tuned)
    with pytest.raises(InputError, match=r"other settings \(detector differ"):
        training.run(annotator(world, tuned, detector_options={"windows": [[0.5, 3]]}), SilentReporter())


def test_an_annotator_of_patches_learns_the_plain_dialogue(world: Path, tmp_path: Path) -> None:
    made = annotator(world, tmp_path / "out", 1, annotator="patches", detector=None, detector_options={}, max_steps=2)
    training.run(made, SilentReporter())
    plain = config(world, tmp_path / "plain", store=None, policy="none", max_steps=2)
    training.run(plain, SilentReporter())
    assert [r["loss"] for r in log_of(tmp_path / "out")] == [r["loss"] for r in log_of(tmp_path / "plain")]
    found = json.loads((tmp_path / "out" / checkpoint_info.ANNOTATOR_FILE).read_text())
    assert (found["backbone"], found["detector"], found["region_tokens"]) == ("patches", None, None)


def test_a_picture_without_regions_is_skipped_and_named(world: Path) -> None:
    from cos_core.training.region_crops import RegionCrops

    class Blind(Detector):
        def detect(self, image: object, path: str = "") -> Regions:
            return Regions((BOX,), (1.0,)) if path == "1.png" else Regions((), ())

    made = recipe(world, "none", region_crops=RegionCrops(Blind()))
    data = TrainDataset(collected(read_examples(world / "data.json"), made.policy, None).samples, made)
    item = data[0]
    assert (item.id, len(item.pictures)) == (data.samples[1].id, 1)
    assert "proposes no region" in item.skipped[0].reason


def test_the_bill_counts_regions(world: Path, tmp_path: Path) -> None:
    made = annotator(world, tmp_path / "out", 1, dry_run=True, check="off")
    bill = training.run(made, SilentReporter()).results["bill"]
    assert bill["pictures"] == 30 * len(SIZES)
    assert not (tmp_path / "out").exists()


def test_what_an_annotator_cannot_learn_is_refused(world: Path, tmp_path: Path) -> None:
    for wrong, said in (
        ({"store": world / "store"}, "leave the store out"),
        ({"extra_turns": True}, "one question at a time"),
        ({"policy": "gold"}, "not the policy 'gold'"),
        ({"annotator": "patches"}, "belong to the annotator 'regions'"),
        ({"annotator": None}, "belong to the annotator 'regions'"),
        ({"annotator": "eyes"}, "annotator is"),
        ({"detector": None}, "need a detector"),
        ({"region_tokens": 0}, "region_tokens"),
    ):
        with pytest.raises(InputError, match=said):
            annotator(world, tmp_path / "out", **{"tokens": 2, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'grid'"):
        training.run(annotator(world, tmp_path / "out", detector="gridd"), SilentReporter())


def test_annotations_say_how_their_annotator_was_tuned(world: Path, tuned: Path, tmp_path: Path) -> None:
    from reporters import Told

    from cos_core import annotate
    from cos_core.store.annotations import Store

    job = annotate.AnnotateConfig(
        world / "data.json",
        world / "images",
        str(tuned),
        tmp_path / "as-tuned",
        detector="grid",
        detector_options=FEW,
        backbone_options={"tokens": 2},
        device="cpu",
    )
    told = Told()
    annotate.run(job, told)
    assert not [words for words in told.warnings if "tuned" in words]
    with Store.read(job.out) as store:
        assert store.info()["provenance"]["annotator"] == checkpoint_info.annotator_provenance(str(tuned))
    told = Told()
    annotate.run(replace(job, out=tmp_path / "otherwise", detector_options={}, backbone_options={}), told)
    tuned_with = [words for words in told.warnings if "was tuned with" in words]
    assert [words.split()[5] for words in tuned_with] == ["detector", "region_tokens"]
