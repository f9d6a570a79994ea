"""The miniature on a real photograph: it has never seen one, and still every part of an answer is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PHOTO = Path(__file__).parent / "golden" / "photos" / "coffee.jpg"
QUESTION = "What is on the table?"


def _cos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cos_cli", *arguments], capture_output=True, text=True, timeout=7200, check=False
    )


@pytest.mark.slow
def test_a_photograph_is_answered_with_a_box_and_a_status():
    done = _cos("infer", "--model", "miniature", "--image", str(PHOTO), "--question", QUESTION, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["answer"]
    assert answer["box_status"] in ("ok", "repaired", "clamped", "degenerate", "unparsable")
    x0, y0, x1, y1 = answer["box"]
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    assert answer["box_text"] is not None


@pytest.mark.slow
def test_the_same_for_people():
    done = _cos("infer", "--model", "miniature", "--image", str(PHOTO), "--question", QUESTION)
    assert done.returncode == 0, done.stderr
    for word in ("box", "status", "answer"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_corrupt_picture_is_one_sentence_and_exit_3(tmp_path: Path):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(PHOTO.read_bytes()[:20_000])
    done = _cos("infer", "--model", "miniature", "--image", str(torn), "--question", QUESTION)
    assert done.returncode == 3
    assert done.stdout == ""
    sentence = done.stderr.strip()
    assert "torn.jpg" in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
