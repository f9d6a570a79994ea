"""One contract test a kind of plug-in, run over every module that exists: its file name is its name, `build` is its entry."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cos_core.dialogue.prompts import dialogue, load_profile
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.interfaces import Policy, Reply, Request
from cos_core.types import Example

MEMBERS = [(kind, name) for kind in plug.KINDS for name in plug.available(kind)]
NEEDS_A_MODEL = {("engines", "hf"), ("engines", "openai")}
"""Built in its own test: on a tiny checkpoint, or with a server."""


@pytest.mark.parametrize(("kind", "name"), MEMBERS, ids="/".join)
def test_every_plug_in_has_a_build_and_says_what_it_is(kind: str, name: str) -> None:
    module = importlib.import_module(f"cos_core.{kind}.{name}")
    assert module.__doc__, f"{kind}/{name} needs a docstring that says what it is"
    required = [
        p.name
        for p in inspect.signature(module.build).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    given = {"config", "job", "device", "devices", "reporter"} if kind == "runners" else {"model"}
    assert set(required) <= given, "every option has a default, save the model; runners are always given the same"


@pytest.mark.parametrize("name", plug.available("policies"))
def test_a_policy_keeps_its_contract(name: str) -> None:
    policy = plug.load("policies", name)
    assert isinstance(policy, Policy)
    assert policy.name == name
    assert policy.summary
    if policy.source in ("fixed", "gold"):
        example = Example("id", "d", "i.png", "q", meta={"gold": [0.1, 0.2, 0.6, 0.7]})
        box = policy.fixed_box(example, 3)
        assert isinstance(box, Box)
        assert box.frame == "image"
        assert box == policy.fixed_box(example, 3)
    else:
        assert policy.fixed_box is None


@pytest.mark.parametrize("name", [n for n in plug.available("engines") if ("engines", n) not in NEEDS_A_MODEL])
def test_an_engine_keeps_its_contract(name: str) -> None:
    engine = plug.load("engines", name, model="any", device="cpu", dtype="float32", profile=None)
    assert engine.name == name
    turns = dialogue(load_profile("paper"), "what is it?", chain=False)
    replies = engine.generate([Request(turns, {"full": Image.new("RGB", (5, 3))}, 4)] * 3)
    assert len(replies) == 3
    assert all(isinstance(reply, Reply) for reply in replies)
    assert engine.generate([]) == []


def test_listing_names_imports_nothing() -> None:
    code = "import sys; from cos_core.files import plug; [plug.available(k) for k in plug.KINDS]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith(tuple(f"cos_core.{kind}" for kind in plug.KINDS))]
    assert "torch" not in loaded


def test_a_plug_in_from_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from cos_core.interfaces import Policy\n"
        "def build():\n    return Policy(name='mine', source='none')\n"
        "def other():\n    return Policy(name='other', source='none')\n"
        "value = 3\n"
    )
    assert plug.load("policies", str(mine)).name == "mine"
    assert plug.load("policies", f"{mine}:other").name == "other"
    with pytest.raises(InputError, match="has no function 'value'"):
        plug.load("policies", f"{mine}:value")
    with pytest.raises(InputError, match="no plug-in file"):
        plug.load("policies", str(tmp_path / "absent.py"))


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'center_crop'"):
        plug.load("policies", "centre_crop")
    with pytest.raises(InputError, match="unknown kind"):
        plug.available("recipes")
