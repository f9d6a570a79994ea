"""The plain engine, which is the library alone, against the fast one on tiny random checkpoints of every family."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import tiny_families
from PIL import Image

from cos_core.dialogue import prompts
from cos_core.engines._plain import PlainEngine
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Request
from cos_core.models import general

QUESTIONS = ("what", "how many are there in all, and which of them stand to the left?", "colour?")
BOX = "[0.100, 0.200, 0.300, 0.400]"

Load = Callable[[str], general.GeneralModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    models: dict[str, general.GeneralModel] = {}

    def loaded(name: str) -> general.GeneralModel:
        if name not in models:
            folder = tiny_families.build(name, tmp_path_factory.mktemp(name), generation_config={"repetition_penalty": 1.4})
            models[name] = general.load(folder, device="cpu", dtype="float32")
        return models[name]

    return loaded


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def requests(loaded: general.GeneralModel, budget: int = 9) -> list[Request]:
    """Dialogues of one and of two pictures in turn, of unlike lengths, some about one picture."""
    wholes = [picture(1, (120, 80)), picture(2, (40, 61))]
    found = []
    for number, question in enumerate(QUESTIONS):
        whole = wholes[number % 2]
        found.append(Request(prompts.dialogue(loaded.profile, question, chain=False), {"full": whole}, budget - number))
        turns = prompts.dialogue(loaded.profile, question, box_text=BOX)
        found.append(Request(turns, {"full": whole, "roi": whole.crop((3, 3, 31, 37))}, budget))
    return found


@pytest.mark.parametrize("name", tiny_families.WITH_DIALOGUE)
def test_the_fast_engine_answers_as_the_library_does(load: Load, name: str) -> None:
    loaded = load(name)
    asked = requests(loaded)
    plain = PlainEngine(loaded).generate(asked)
    assert [reply.error for reply in plain] == [None] * len(asked)
    for fast in (HfEngine(loaded).generate(asked), HfEngine(loaded, reuse=False).generate(asked)):
        assert fast == plain  # text, tokens in and out, finished
        assert [reply.ids for reply in fast] == [reply.ids for reply in plain]
        assert [reply.steps for reply in fast] == [reply.steps for reply in plain]
        for one, other in zip(fast, plain, strict=True):
            assert one.margins == pytest.approx(other.margins, abs=1e-4)
