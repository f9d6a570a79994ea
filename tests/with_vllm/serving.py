"""The openai engine against a real vLLM on a CPU: every box, answer and token id is the local engine's.

Run by `make test-vllm` (its name keeps it out of `make test`): the client in this repository's own environment, the server in
another, whose Python is $VLLM_PYTHON. The checkpoints are those that `cos` writes, as they lie there, of all three writers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import served_world as world
from PIL import Image

from cos_core.dialogue.prompts import dialogue
from cos_core.engines._messages import of_folder
from cos_core.files import assets
from cos_core.models import llava

QUESTIONS = 300
LIMITS = {"max_new_tokens": 8, "box_tokens": 24, "device": "cpu", "dtype": "float32"}


@contextmanager
def vllm(model: Path, log: Path) -> Iterator[str]:
    command = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--limit-mm-per-prompt", '{"image": 2}']
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with world.serving(command, "/health", log, **small) as address:
        yield address


@pytest.mark.parametrize("writer", ["miniature", "trained", "converted"])
def test_served_is_local(writer: str, tmp_path: Path) -> None:
    data = world.write_questions(tmp_path / "questions", QUESTIONS)
    wording = world.write_profile(tmp_path / "where.json")
    model = {
        "miniature": assets.miniature_checkpoint,
        "trained": lambda: world.train_a_little(tmp_path, wording),
        "converted": lambda: world.convert_a_tiny_one(tmp_path),
    }[writer]()
    settings = {**LIMITS, "model": str(model), "profile": str(wording) if writer == "miniature" else None}
    local = world.predictions(data, tmp_path / "local.jsonl", **settings)
    with vllm(model, tmp_path / "server.log") as address:
        served = world.predictions(data, tmp_path / "served.jsonl", engine="openai", server=f"{address}/v1", **settings)
        assert world.differences(served, local) == []
        assert len(served) == QUESTIONS
        assert len({record["answer"] for record in local}) > 20
        assert writer == "converted" or sum(record["box_status"] == "ok" for record in local) > 100
        assert_ids(model, address)
        padded, bare = world.padded_and_bare(model, f"{address}/v1")
        assert padded == bare


def assert_ids(model: Path, address: str) -> None:
    """vLLM's own tokenisation of both passes is `encode`'s, token for token, pictures' positions included."""
    loaded, sent = llava.load(model, device="cpu"), of_folder(model)
    pictures = {"full": Image.new("RGB", (60, 40), "red"), "roi": Image.new("RGB", (20, 40), "blue")}
    for question in ("What colour is it?", "Où est l'étoile?\nNow 17"):
        for box in (None, "[0.125, 0.250, 0.375, 0.500]", "no box, 3"):
            turns = dialogue(sent.profile, question, box_text=box)
            answer = world.post(f"{address}/tokenize", {"model": str(model), "messages": sent.messages(turns, pictures)})
            assert answer["tokens"] == list(loaded.encode(turns).ids)
