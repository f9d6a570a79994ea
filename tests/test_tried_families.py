"""A family without a file, tried when it is loaded: the fast way where it gives the model's own logits, else the library's.

Families with a file are loaded here as if they had none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cos_core.dialogue.prompts import dialogue
from cos_core.engines import hf
from cos_core.engines._plain import PlainEngine
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Engine, Request
from cos_core.models import families
from cos_core.models.general import GeneralModel

Build = Callable[..., Path]


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "of_config", lambda _config: families.Family())


def built(folder: Path) -> Engine:
    return hf.build(str(folder), device="cpu", dtype="float32")


def asked(engine: Engine) -> list[Request]:
    assert isinstance(engine, HfEngine | PlainEngine)
    profile: Any = engine.loaded.profile
    full, roi = Image.new("RGB", (70, 50), (200, 30, 30)), Image.new("RGB", (30, 40), (20, 200, 90))
    return [
        Request(dialogue(profile, "colour?"), {"full": full}, 6),
        Request(dialogue(profile, "colour?", box_text="[0.1, 0.2, 0.3, 0.4]"), {"full": full, "roi": roi}, 6),
    ]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "idefics3", "pixtral"])
def test_the_fast_way_where_it_is_the_models_own(name: str, tiny_checkpoint: Build) -> None:
    engine = built(tiny_checkpoint(name))
    assert isinstance(engine, HfEngine)
    assert (engine.remark, engine.one_picture) == ("", "")


@pytest.mark.parametrize("name", ["paligemma", "gemma3", "llava_onevision"])
def test_the_librarys_way_where_it_is_not(name: str, tiny_checkpoint: Build) -> None:
    """PaliGemma reads a prompt both ways, Gemma 3 a picture; OneVision tiles a picture only when it is alone."""
    engine = built(tiny_checkpoint(name))
    assert isinstance(engine, PlainEngine)
    assert "computed from its start" in engine.remark
    replies = engine.generate(asked(engine))
    assert [reply.error for reply in replies] == [None, None]


def test_a_model_that_drops_the_second_picture(tiny_checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.Module.__call__

    def first_only(self: Any, *args: Any, **inputs: Any) -> Any:
        if type(self).__name__ == "InternVLForConditionalGeneration" and inputs.get("pixel_values") is not None:
            tiles = inputs["pixel_values"]
            inputs["pixel_values"] = tiles[:1].expand_as(tiles)
        return real(self, *args, **inputs)

    monkeypatch.setattr(torch.nn.Module, "__call__", first_only)
    assert built(tiny_checkpoint("internvl")).one_picture


def test_a_fast_way_that_breaks(tiny_checkpoint: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("pooler_output")

    monkeypatch.setattr(GeneralModel, "features", broken)
    engine = built(tiny_checkpoint("internvl"))
    assert isinstance(engine, PlainEngine)
    assert "KeyError" in engine.remark
