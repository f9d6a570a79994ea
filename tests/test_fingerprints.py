"""Everything decides, save what is declared not to: no setting can change and leave a half-finished output to go on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_llava import byte_tokenizer
from two_passes import QUIET, Recorder, make_config

from cos_core import annotate, evaluate
from cos_core.annotate import annotator
from cos_core.annotate.config import NOT_IN_FINGERPRINT as NOT_ANNOTATING
from cos_core.dialogue import prompts
from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.cropping import CropSettings, crop_region, region_of
from cos_core.dialogue.encoding import encode
from cos_core.dialogue.prompts import DIALOGUE_VERSION, dialogue, load_profile, profile_names
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.files import assets, manifest, plug
from cos_core.files.images import square_pad
from cos_core.geometry import Box
from cos_core.infer import InferConfig, run
from cos_core.infer.settings import NOT_IN_FINGERPRINT, resolved_profile, setting
from cos_core.runners import RunnerConfig
from cos_core.training.config import _NOT_IN_FINGERPRINT as NOT_LEARNT
from cos_core.training.config import TrainConfig
from cos_core.types import Example

POLICY = """
from cos_core.geometry import Box
from cos_core.interfaces import Policy

def build():
    return Policy(name="mine", source="fixed", fixed_box=lambda example, seed: Box(0.1, 0.1, EDGE, 0.5))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the miniature, to be changed."""
    return Path(shutil.copytree(assets.miniature_checkpoint(), tmp_path / "model"))


# --- infer -----------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "out": Path("other.jsonl"),
    "data": Path("other.json"),
    "images": Path("elsewhere"),
    "image": Path("one.png"),
    "question": "What?",
    "batch_size": 3,
    "max_new_tokens": 5,
    "box_tokens": 31,
    "box_decode": "grammar",
    "on_bad_box": "center",
    "profile": "repo-2024",
    "limit": 4,
    "seed": 5,
    "device": "cpu,cpu",
    "dtype": "float16",
    "engine": "scripted",
    "max_failures": 6,
    "retry_failed": True,
    "reuse": False,
    "kv_budget": 0.5,
    "server": "http://127.0.0.1:1/v1",
    "concurrency": 2,
    "timeout": 7.0,
    "follow_links": True,
    "roi": "center",
    "scale": RunnerConfig("processes", 2),
}
BY_CONTENT = ("model", "dtype", "profile", "roi")
"""Declared not to count as they are written, since they count by what they mean."""


@pytest.mark.parametrize("name", [f.name for f in fields(InferConfig)])
def test_every_setting_of_an_answer_counts_or_is_declared_not_to(name: str, model: Path) -> None:
    config = InferConfig(model=str(model), device="cpu")
    if name == "model":
        shutil.copytree(model, model.with_name("copy"))
        same = replace(config, model=model.with_name("copy"))
        assert setting(same).fingerprint == setting(config).fingerprint
        weights = model / "config.json"
        before = setting(config).fingerprint
        weights.write_text(weights.read_text() + " ")
        assert setting(config).fingerprint != before
        return
    changed = replace(config, **{name: OTHER[name]})
    assert changed != config
    counts = name not in NOT_IN_FINGERPRINT or name in BY_CONTENT
    assert (setting(changed).fingerprint != setting(config).fingerprint) == counts


def test_what_is_declared_is_a_setting_and_has_a_reason() -> None:
    assert set(NOT_IN_FINGERPRINT) <= {f.name for f in fields(InferConfig)}
    assert all(NOT_IN_FINGERPRINT.values())


def test_a_policy_of_ones_own_counts_by_its_content(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    config = InferConfig(model=str(model), device="cpu", roi=str(file))
    marks = []
    for edge in ("0.4", "0.5"):
        file.write_text(POLICY.replace("EDGE", edge))
        marks.append(setting(config).fingerprint)
        file.rename(tmp_path / "moved.py")
        assert (
            plug.source(str(tmp_path / "moved.py"))
            == setting(replace(config, roi=str(tmp_path / "moved.py"))).settings["plugins"]["moved"]
        )
    assert marks[0] != marks[1]


def test_a_profile_counts_by_its_content_and_is_resolved_once(model: Path, tmp_path: Path) -> None:
    config = InferConfig(model=str(model), device="cpu")
    before = setting(config)
    own = model / prompts.PROFILE_FILE
    data = json.loads(own.read_text())
    copy = tmp_path / "same.json"
    copy.write_text(json.dumps(data))
    assert setting(replace(config, profile=str(copy))).fingerprint == before.fingerprint
    copy.write_text(json.dumps({**data, "crop_from": "canvas"}))
    other = replace(config, profile=str(copy))
    assert setting(other).fingerprint != before.fingerprint
    resolved = resolved_profile(other)
    copy.unlink()
    # What a stage has resolved is handed on; nobody reads the file a second time.
    assert prompts.checkpoint_profile(str(model), resolved) is resolved


def test_the_padding_colour_is_the_checkpoints(model: Path) -> None:
    made = setting(InferConfig(model=str(model), device="cpu"))
    assert made.fill == (140, 140, 140)
    assert CropSettings.from_settings(made.settings) == CropSettings(made.profile, made.fill, "full")
    assert setting(InferConfig(model="served-name", engine="openai", server="http://127.0.0.1:9/v1")).fill == (122, 116, 104)


def test_going_on_with_other_settings_names_them(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run(config, QUIET, Recorder())
    with pytest.raises(InputError, match="box_tokens 48, now 40"):
        run(replace(config, box_tokens=40), QUIET, Recorder())
    with pytest.raises(InputError, match=r"profile\.name paper, now repo-2024"):
        run(replace(config, profile="repo-2024"), QUIET, Recorder())
    path = manifest.path_for(config.out or tmp_path)
    old = json.loads(path.read_text())
    # An answer file of 0.1: its manifest does not hold all that counted.
    path.write_text(json.dumps({**old, "results": {}, "versions": {"cos": "0.1.0"}}))
    with pytest.raises(InputError, match=r"cos 0\.1\.0 wrote it"):
        run(replace(config, box_tokens=40), QUIET, Recorder())


# --- what the version of the dialogue stands for -----------------------------------------------------------------------

SHOWN = {1: "f0ffb034052c8d94658f72186928c45bbeb16efebf7715ee487684fbda543afa"}  # pragma: allowlist secret
"""DIALOGUE_VERSION -> digest of all below. Where the digest changes, raise the version and add its line; never edit one."""
TEXTS = (
    "[0.1, 0.2, 0.8, 0.9]",
    "10% 20% 80% 90%",
    "[0.8, 0.2, 0.1, 0.9]",
    "[0.1, -0.2, 0.8, 1.9]",
    "[0, 0, 1, 0.1]",
    "red",
    "",
)


def test_what_a_model_is_shown_is_what_the_version_says() -> None:
    digest = hashlib.sha256()
    tokenizer = byte_tokenizer()
    picture = Image.new("RGB", (90, 40))
    picture.putdata([(x, y, 7) for y in range(40) for x in range(90)])
    for profile in map(load_profile, sorted(profile_names())):
        if profile.box == "family":  # says nothing by itself: what it shows stands in STYLES_SHOWN
            continue
        for turns in _dialogues(profile):
            encoded = encode(profile, turns, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2)
            digest.update(repr((encoded.ids, encoded.labels, encoded.slots)).encode())
        for text in TEXTS:
            for fallback in ("full", "center", "skip"):
                region = region_of(text, picture.size, profile, fallback)  # type: ignore[arg-type]
                digest.update(repr(region).encode())
                if region.area is not None:
                    cut = crop_region(picture, region.area, profile.crop_from, (1, 2, 3))
                    digest.update(repr(cut.size).encode() + square_pad(cut, (1, 2, 3)).tobytes())
        digest.update(write_box(Box(0.1234567, 0.2, 0.5, 0.99999, "square"), profile).encode())
    example = Example("q", "d", "a.png", "What?", ("x",), meta={"gold": [0.1, 0.2, 0.3, 0.4]})
    for name in plug.available("policies"):
        policy = plug.load("policies", name)
        box = policy.fixed_box(example, 3) if policy.fixed_box else None
        digest.update(repr((policy.name, policy.source, policy.asks, box)).encode())
    assert digest.hexdigest() == SHOWN[DIALOGUE_VERSION]


def _dialogues(profile: prompts.Profile) -> list[Any]:
    made = [dialogue(profile, "What is {it}?", chain=False, suffix="\nBriefly.")]
    made.append(dialogue(profile, "What?", chain=False, answer="x"))
    for asks in ("single", "all", "image"):
        more: dict[str, Any] = {"asks": asks, "all_questions": ("What?", "Where?"), "suffix": "\nBriefly."}
        made.append(dialogue(profile, "What?", **more))
        made.append(dialogue(profile, "What?", box_text="[0.1, 0.2, 0.8, 0.9]", **more))
        made.append(dialogue(profile, "What?", box_text="red", answer="x", extra_turns=[("And?", "y"), ("Or?", "z")], **more))
    made.append(dialogue(profile, "What?", box_text="b", answer="x", learn_box=False))
    return made


# --- the other stages ------------------------------------------------------------------------------------------------

OTHER_TRAIN: dict[str, Any] = {
    "epochs": 2, "learning_rate": 1e-3, "warmup_ratio": 0.1, "weight_decay": 0.1, "global_batch": 2048, "max_length": 99,
    "max_length_counts": "text", "limit": 5,
    "max_steps": 7, "extra_turns": True, "train_projector": True, "seed": 3, "dtype": "bfloat16", "group_by_length": True,
    "crop_of": "region", "on_no_region": "skip", "annotator": "patches", "region_tokens": 2, "lora": 8, "qlora": True,
    "profile": "repo-2024", "policy": "center_crop",
}  # fmt: skip


NEEDED: dict[str, dict[str, Any]] = {"qlora": {"lora": 4}, "region_tokens": {"annotator": "regions"}}
"""What must be set for a setting to mean anything."""


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_every_setting_of_training_counts_or_is_declared_not_to(name: str) -> None:
    if name in NOT_LEARNT:
        return
    config = TrainConfig(Path("d"), Path("i"), "m", Path("o"), **NEEDED.get(name, {}))
    assert name in OTHER_TRAIN, f"{name} is neither declared not to count (training/config.py) nor known here"
    changed = replace(config, **{name: OTHER_TRAIN[name]})
    assert manifest.fingerprint(changed.learnt(1)) != manifest.fingerprint(config.learnt(1))


OTHER_ANNOTATE: dict[str, Any] = {
    "backbone": "patches", "backbone_options": {"tokens": 2}, "detector": "components", "detector_options": {"most": 3},
    "policy": "center_crop", "target": "argmax", "last_layers": 1, "threshold": 0.4, "keep_mass": 0.3, "region": "component",
    "extend": 0.2, "finer": 2, "dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.slow
def test_every_setting_of_annotation_counts_or_is_declared_not_to(model: Path, tmp_path: Path) -> None:
    config = annotate.AnnotateConfig(Path("d"), Path("i"), str(model), Path("o"), device="cpu", detector="grid")
    before = annotator.build(config).fingerprint
    for each in fields(annotate.AnnotateConfig):
        if each.name in NOT_ANNOTATING:
            continue
        if each.name == "model":
            text = (model / "config.json").read_text()
            (model / "config.json").write_text(text + " ")
            assert annotator.build(config).fingerprint != before
            (model / "config.json").write_text(text)
            continue
        if each.name == "seed":
            first = replace(config, policy="random")
            assert annotator.build(replace(first, seed=9)).fingerprint != annotator.build(first).fingerprint
            continue
        changed = replace(config, **{each.name: OTHER_ANNOTATE[each.name]})
        assert annotator.build(changed).fingerprint != before, each.name
    file = tmp_path / "mine.py"
    marks = []
    for edge in ("0.4", "0.5"):
        file.write_text(POLICY.replace("EDGE", edge))
        marks.append(annotator.build(replace(config, policy=str(file))).fingerprint)
    assert marks[0] != marks[1]


def test_a_benchmark_of_ones_own_counts_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    (tmp_path / "a.jsonl").write_text('{"question_id": "1", "text": "yes"}\n')
    text = (
        "from cos_core.scoring import metrics\nfrom cos_core.interfaces import BenchmarkData\n"
        "from cos_core.types import Example\n"
        "class Mine:\n    name, summary = 'mine', ''\n"
        "    def load(self, root):\n"
        "        return BenchmarkData('mine', 'all', [Example('1', 'm', 'a.png', 'q', ('yes',))], root)\n"
        "    def score(self, data, predictions):\n"
        "        return metrics.judge(data.examples, predictions, lambda e, t: metrics.Verdict(VALUE, t, 'yes'))\n"
        "    def metrics(self, data, scores):\n        return {'accuracy': metrics.mean(scores)}\n"
        "def build():\n    return Mine()\n"
    )
    rules = []
    for value in ("1.0", "0.5"):
        file.write_text(text.replace("VALUE", value))
        rules.append(evaluate.run(EvalConfig(str(file), tmp_path, tmp_path / "a.jsonl")).results["protocol"]["rule"])
    assert rules[0] != rules[1]
