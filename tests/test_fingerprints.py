"""Everything decides, save what is declared not to: no setting can change and leave a half-finished output to go on with."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from box_styles import PROFILES
from documents import ROOT
from PIL import Image
from tiny_llava import byte_tokenizer
from two_passes import QUIET, Recorder, make_config

from cos_core import annotate, evaluate, options
from cos_core.annotate import annotator
from cos_core.data.formats.config import StoreExportConfig, StoreImportConfig
from cos_core.demo import steps
from cos_core.demo.config import DemoConfig
from cos_core.dialogue import prompts
from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.cropping import CropSettings, crop_region, region_of
from cos_core.dialogue.encoding import encode
from cos_core.dialogue.prompts import DIALOGUE_VERSION, dialogue, load_profile, profile_names
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.files import assets, deciding, manifest, plug
from cos_core.files.images import square_pad
from cos_core.files.shard import Shard
from cos_core.geometry import Box
from cos_core.infer import InferConfig, run
from cos_core.infer.settings import resolved_profile, setting
from cos_core.options import SPEED, option
from cos_core.runners import RunnerConfig
from cos_core.store.merge import MergeConfig
from cos_core.training import TrainConfig, inputs
from cos_core.types import Example
from cos_core.visualize import config as visualize

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


# --- the rule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    depth: int = option(1, "", SPEED)
    name: str = option("n", "", SPEED, not_in_fingerprint="a name")


@dataclass(frozen=True)
class Ruled:
    model: str = option("m", "", SPEED)
    out: str = option("o", "", SPEED, not_in_fingerprint="where it goes")
    most: int | None = option(3, "", SPEED, before=None)
    bare: int = 0
    group: Group = options.group(Group)
    place: Group = options.group(Group, not_in_fingerprint="where the work is done")


def test_a_field_decides_unless_its_declaration_says_otherwise() -> None:
    assert deciding.settings(Ruled()) == {"model": "m", "most": 3, "bare": 0, "group": {"depth": 1}}
    assert deciding.settings(Ruled(out="x", place=Group(7), most=None)) == {"model": "m", "bare": 0, "group": {"depth": 1}}


def test_what_counts_by_its_content_takes_the_place_of_its_fields() -> None:
    both = {"weights": "5e1f"}
    made = deciding.settings(Ruled(), {"model": both, "bare": both, "group": {}})
    assert made == {"weights": "5e1f", "most": 3}


@pytest.mark.parametrize(
    "replaced",
    [
        {"nothing": {"nothing": 1}},
        {"out": {"out": "elsewhere"}},
        {"place": {}},
        {"model": {"bare": 0}},
        {"model": {"weights": 1}, "bare": {"weights": 2}},
    ],
)
def test_a_replacement_that_cannot_be_meant_is_an_error(replaced: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Ruled"):
        deciding.settings(Ruled(), replaced)


@pytest.mark.parametrize(("before", "other"), [(0, False), (1, True), (True, 1), (1, 1.0), (None, 0)])
def test_a_value_of_another_type_is_not_the_one_before(before: Any, other: Any) -> None:
    changed = make_dataclass("Changed", [("added", Any, deciding.later(before))])
    assert deciding.settings(changed()) == {}
    assert "added" in deciding.settings(changed(other))


@pytest.mark.parametrize("declared", [{"not_in_fingerprint": " "}, {"not_in_fingerprint": "a reason", "before": None}])
def test_a_declaration_that_cannot_be_meant_is_an_error(declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not_in_fingerprint|before"):
        option(1, "", SPEED, **declared)


def config_classes() -> list[type]:
    """Every class of cos_core that has an option, found in the source: `name: type = option(...)` or a call that makes one."""
    makers = re.compile(r"(options\.)?(\w+_)?option|options\.group")
    classes = []
    for file in sorted((ROOT / "cos_core").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef):
                continue
            calls = [each.value for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.value, ast.Call)]
            if any(makers.fullmatch(ast.unparse(call.func)) for call in calls):
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                classes.append(getattr(importlib.import_module(module), node.name))
    return classes


CONFIGS = config_classes()
TWO: dict[Any, tuple[Any, Any]] = {
    bool: (False, True), int: (1, 2), float: (0.5, 1.5), str: ("a", "b"), Path: (Path("a"), Path("b")),
    Shard: (Shard(1, 2), Shard(2, 2)), dict: ({}, {"most": 3}), tuple: (("a",), ("a", "b")),
}  # fmt: skip
"""Two values of each type."""


def _two(field: Field[Any], annotation: Any) -> tuple[Any, Any]:
    """A field's default, else a value of its type, and another one."""
    members = [annotation]
    while any(get_origin(each) in (Union, UnionType) for each in members):
        members = [part for each in members for part in (get_args(each) if get_origin(each) in (Union, UnionType) else [each])]
    members = [each for each in members if each is not NoneType]
    kind = get_origin(members[0]) or members[0]
    if is_dataclass(kind) and kind not in TWO:
        first = kind()
        name, other = next((each.name, _two(each, get_type_hints(kind)[each.name])[1]) for each in fields(kind))
        return first, _with(first, name, other)
    values = get_args(members[0]) if kind is Literal else TWO[dict if kind is Mapping else kind]
    if field.default is not MISSING:
        return field.default, next(value for value in values if value != field.default)
    return values[:2]


def _with(config: Any, name: str, value: Any) -> Any:
    """The same Config with another value: one that its class may refuse beside the others."""
    changed = copy.copy(config)
    object.__setattr__(changed, name, value)
    return changed


def _bare(config: type) -> Any:
    """A Config that holds the first value of every field."""
    made, hints = object.__new__(config), get_type_hints(config)
    for each in fields(config):
        object.__setattr__(made, each.name, _two(each, hints[each.name])[0])
    return made


def test_every_config_is_looked_at() -> None:
    stages = {InferConfig, annotate.AnnotateConfig, TrainConfig, EvalConfig, visualize.ReportConfig, MergeConfig, DemoConfig}
    assert stages | {RunnerConfig, StoreImportConfig} <= set(CONFIGS)


@pytest.mark.parametrize(
    ("config", "field"), [pytest.param(c, f, id=f"{c.__name__}.{f.name}") for c in CONFIGS for f in fields(c)]
)
def test_a_field_changes_the_fingerprint_exactly_if_it_decides(config: type, field: Field[Any]) -> None:
    first, second = _two(field, get_type_hints(config)[field.name])
    made = _with(_bare(config), field.name, first)
    marks = [manifest.fingerprint(deciding.settings(each)) for each in (made, _with(made, field.name, second))]
    assert (marks[0] != marks[1]) == (deciding.reason(field) is None)


def known_fingerprints(folder: Path) -> Iterator[tuple[str, str]]:
    """A run of each stage, and its fingerprint: none depends on a shipped checkpoint."""
    data, images, out = Path("d.json"), Path("i"), Path("o")
    yield "infer", setting(InferConfig(model="llava-1.5-7b", engine="openai", server="http://127.0.0.1:9/v1")).fingerprint
    by_content: dict[str, dict[str, Any]] = {name: {} for name in ("data", "model", "store", "detector", "detector_options")}
    yield "train", manifest.fingerprint(TrainConfig(data, images, "m", out, profile="paper").learnt(8, by_content))
    for policy in ("center_crop", "random", "gold"):
        yield f"annotate {policy}", annotator.build(annotate.AnnotateConfig(data, images, "m", out, policy=policy)).fingerprint
    begun = {
        "eval": EvalConfig("scenes", data, out),
        "merge": MergeConfig((data, images), out),
        "export": StoreExportConfig(data, out),
        "import": StoreImportConfig(data, out),
        "report": visualize.ReportConfig((data,), Path("r.html")),
        "compare": visualize.CompareConfig((data,), Path("r.png")),
        "run export": visualize.RunExportConfig(data, out, "coco"),
        "overlay": visualize.OverlayConfig(out),
        "boxes": visualize.BoxStatsConfig(data, out),
    }
    for name, config in begun.items():
        yield name, manifest.started(name, config).fingerprint
    demo = DemoConfig(folder, quick=True)
    for split in ("train", "test"):
        steps.make_scenes(demo, split, QUIET)
        yield f"scenes {split}", manifest.read(folder / "scenes" / split).fingerprint


KNOWN = {
    "infer": "8ee239a9a7d99949",
    "train": "e27f0ee0387e3de4",
    "annotate center_crop": "0efc30da4cf293ae",  # pragma: allowlist secret
    "annotate random": "28648f46866d11fb",
    "annotate gold": "746b7865770e7e1c",  # pragma: allowlist secret
    "eval": "3e48c62d2633125c",  # pragma: allowlist secret
    "merge": "1a617b78ba5bf1a9",
    "export": "a06ea3fc76517d78",  # pragma: allowlist secret
    "import": "5a79a2b58acaee80",  # pragma: allowlist secret
    "report": "15c5b9024ef30302",  # pragma: allowlist secret
    "compare": "1b3d701c886fc34f",  # pragma: allowlist secret
    "run export": "139da99c170292fc",  # pragma: allowlist secret
    "overlay": "0c452962748e3ba9",  # pragma: allowlist secret
    "boxes": "c83341b833812f2d",
    "scenes train": "81a67bca75baa158",
    "scenes test": "2d4ea13a7612c092",  # pragma: allowlist secret
}
"""The fingerprints of 0.2. What was begun with one of them goes on only while it stays: a field that is added later says with
`before` what it was like before it."""


def test_what_was_begun_earlier_goes_on(tmp_path: Path) -> None:
    assert dict(known_fingerprints(tmp_path)) == KNOWN


# --- infer -----------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "out": Path("other.jsonl"),
    "data": Path("other.json"),
    "columns": "question=q",
    "images": Path("elsewhere"),
    "image": Path("one.png"),
    "question": "What?",
    "batch_size": 3,
    "max_new_tokens": 5,
    "box_tokens": 31,
    "box_decode": "grammar",
    "crop": "black",
    "box_text": "none",
    "global_scale": 0.5,
    "gate": "margin:2",
    "temperature": 0.7,
    "top_p": 0.9,
    "samples": 3,
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
    "family": "qwen2_vl",
    "min_pixels": 1000,
    "max_pixels": 1000,
    "max_tiles": 1,
    "longest_edge": 100,
}
OTHER_FAMILIES = ("family", "min_pixels", "max_pixels", "max_tiles", "longest_edge")
"""What LLaVA-1.5 does not have (tests/test_served_families.py)."""


def decides(config: type, name: str) -> bool:
    (field,) = [each for each in fields(config) if each.name == name]
    return deciding.reason(field) is None


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
    config = replace(config, temperature=0.5) if name in ("top_p", "samples") else config
    changed = replace(config, **{name: OTHER[name]})
    assert changed != config
    if name in OTHER_FAMILIES:
        with pytest.raises(InputError, match="--" + name.replace("_", "-")):
            setting(changed)
        return
    assert (setting(changed).fingerprint != setting(config).fingerprint) == decides(InferConfig, name)


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
    assert CropSettings.from_settings(made.settings) == CropSettings(made.profile, made.fill, "full", seed=0)
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


STYLES_SHOWN = {1: "24d3feed0c2e5b39156160373b1208e3be8f435a25d839bcd639b7b3196df052"}  # pragma: allowlist secret
"""As SHOWN, for checkpoints that are asked through their chat templates and write boxes as their families do."""


def test_what_the_families_are_shown_is_what_the_version_says() -> None:
    digest = hashlib.sha256(repr(_dialogues(load_profile("chat"))).encode())
    size, seen = (90, 40), (84, 56)
    for name, profile in sorted(PROFILES.items()):
        texts = [write_box(Box(*corners, profile.box_frame), profile, seen) for corners in BOXES]
        for text in (*texts, *TEXTS, *TEXTS_OF_FAMILIES):
            digest.update(repr((name, text, region_of(text, size, profile, "center", seen))).encode())
    assert digest.hexdigest() == STYLES_SHOWN[DIALOGUE_VERSION]


BOXES = ((0.1234567, 0.2, 0.5, 0.99999), (0.0, 0.0, 1.0, 1.0), (0.3, 0.4, 0.30001, 0.9))
TEXTS_OF_FAMILIES = (
    "(74,361),(324,808)",
    '```json\n[{"bbox_2d": [7, 3, 32, 40], "label": "2 dogs"}, {"bbox_2d": [1, 2, 3, 4]}]\n```',
    '{"bbox_2d": ["324", "808", "74", "361"]}',
    "<ref>cats</ref><box>[[7.5, 3, 32, 1940]]</box>",
    "<loc0256><loc0077><loc0768><loc0512> 2 dogs",
    "x0=0.1, y0=0.2, x1=0.8, y1=0.9",
    "In 1990 there were 3 dogs, 4 cats and 12 birds.",
)


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
    "columns": "question=q",
    "epochs": 2, "learning_rate": 1e-3, "warmup_ratio": 0.1, "weight_decay": 0.1, "global_batch": 2048, "max_length": 99,
    "max_length_counts": "text", "limit": 5, "max_steps": 7, "extra_turns": True, "train_projector": True, "seed": 3,
    "dtype": "bfloat16", "group_by_length": True, "crop_of": "region", "on_no_region": "skip", "annotator": "patches",
    "region_tokens": 2, "lora": 8, "qlora": True, "profile": "repo-2024", "policy": "center_crop", "detector": "components",
    "detector_options": {"most": 3}, "images": Path("x"), "out": Path("y"), "batch_size": 8, "device": "cpu", "workers": 2,
    "save_every": 3, "save_minutes": 3.0, "resume": False, "deepspeed": "zero2", "gradient_checkpointing": True,
    "check": "off", "check_only": True, "max_faults": 2, "dry_run": True, "mfu": 0.2, "liger": True, "report_to": "wandb",
    "processes": 2, "max_no_region": 0.5, "follow_links": True, "price_hour": 2.0,
    **{name: OTHER[name] for name in OTHER_FAMILIES if name != "family"},
}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "qlora": {"lora": 4},
    "region_tokens": {"annotator": "regions"},
    "detector": {"annotator": "regions"},
    "detector_options": {"annotator": "regions", "detector": "grid"},
}
"""What must be set for a setting to mean anything."""


def _learnt(config: TrainConfig) -> str:
    policy = plug.load("policies", config.rule)
    return manifest.fingerprint(inputs.settings(config, policy, 1, inputs.start_checkpoint(config))[0])


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_every_setting_of_training_counts_or_is_declared_not_to(name: str, model: Path, tmp_path: Path) -> None:
    files = {text: tmp_path / f"{text}.json" for text in ("one", "two")}
    for text, file in files.items():
        file.write_text(json.dumps(text))
    settings = {"data": files["one"], "images": Path("i"), "model": str(model), "out": Path("o"), **NEEDED.get(name, {})}
    config = TrainConfig(**settings)
    before = _learnt(config)
    if name == "model":
        (model / "config.json").write_text((model / "config.json").read_text() + " ")
        changed = config
    else:
        changed = replace(config, **{name: files["two"] if name in ("data", "store") else OTHER_TRAIN[name]})
    if name in OTHER_FAMILIES:
        with pytest.raises(InputError, match="--" + name.replace("_", "-")):
            _learnt(changed)
        return
    assert (_learnt(changed) != before) == decides(TrainConfig, name)


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
        if not decides(annotate.AnnotateConfig, each.name):
            continue
        if each.name in OTHER_FAMILIES:
            with pytest.raises(InputError, match="--" + each.name.replace("_", "-")):
                annotator.build(replace(config, **{each.name: OTHER[each.name]}))
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


SHOWN_TO_BACKBONES = {"regions": "41f325fe497a2751", "patches": "b4fed95180e653e3"}  # pragma: allowlist secret
"""The fingerprints of 0.2 without the model's: what a backbone says of itself counts, the profile's settings included."""


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(SHOWN_TO_BACKBONES))
def test_a_store_of_a_model_that_was_begun_earlier_goes_on(backbone: str) -> None:
    config = annotate.AnnotateConfig(Path("d"), Path("i"), "miniature", Path("o"), device="cpu", backbone=backbone)
    settings = annotator.build(config).settings
    shown = {name: value for name, value in settings["backbone"].items() if name != "model"}
    counts = {"policy": settings["policy"], "rule": settings["rule"], "backbone": shown}
    assert manifest.fingerprint(counts) == SHOWN_TO_BACKBONES[backbone]


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
