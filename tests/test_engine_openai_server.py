"""The openai engine against a real server: `transformers serve` with a tiny random LLaVA."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core import prompts
from cos_core.engines.openai import build
from cos_core.infer.passes import Setting, TwoPass
from cos_core.plug import load as plugin
from cos_core.types import Example

pytest.importorskip("fastapi", reason="the server's own packages are not installed")

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}{% if c.type == 'image' %}<image>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %} ASSISTANT:{% else %} "
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

    where = make_checkpoint(tmp_path_factory.mktemp("served"))
    processor = LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(where),
        AutoTokenizer.from_pretrained(where),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(where)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = where / "server.log"
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(where), "--device", "cpu", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(where)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_two_passes_against_a_real_server(server: tuple[str, str]) -> None:
    url, model = server
    engine = build(model, server=url, concurrency=2, timeout=120)
    setting = Setting(plugin("policies", "from_single_question"), prompts.load_profile("paper"), max_new_tokens=4, box_tokens=6)
    batch = [
        (Example(id=str(i), dataset="t", image="a", question=f"what {i}"), Image.new("RGB", (60, 40 + i), (40 * i, 9, 90)))
        for i in range(3)
    ]
    predictions = TwoPass(engine, setting).predict(batch)  # type: ignore[arg-type]
    assert [p.error for p in predictions] == [None] * 3
    assert all(p.box_text is not None and p.answer is not None for p in predictions)
    # Both pictures reached the model: 16 positions each.
    assert all(p.tokens["pass2_in"] > p.tokens["pass1_in"] + 16 for p in predictions)
    again = TwoPass(engine, setting).predict(batch)  # type: ignore[arg-type]
    assert [p.answer for p in again] == [p.answer for p in predictions], "greedy answers repeat"
