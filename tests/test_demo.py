"""`cos demo --quick`, as a stranger runs it: from the wheel, without a network, killed in the middle, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import installed
import pytest

from cos_core.demo.config import ARMS, BASE, CONTENT, MAIN, DemoConfig, arm, models
from cos_core.demo.steps import _answering, plan
from cos_core.miniature.scenes import KINDS
from cos_core.types import Prediction

COMMAND = [sys.executable, "-m", "cos_cli", "demo", "--quick"]


def test_every_step_waits_for_what_it_reads():
    tasks = plan(DemoConfig(Path("x")))
    names = [t.name for t in tasks]
    assert len(set(names)) == len(names)
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = [t for t in tasks if t.name not in done and done.issuperset(t.needs)]
        assert ready, "steps wait for each other"
        done.update(t.name for t in ready)
    assert {f"score {a.name}" for a in ARMS} <= done
    # No gold region reaches the arm that the demo is about, nor the labels it is trained on.
    chain = {"annotate from_single_question", f"train {MAIN}"}
    assert not any("gold" in need for t in tasks if t.name in chain for need in t.needs)


def test_arms_of_one_model_differ_in_how_it_answers():
    config = DemoConfig(Path("x"))
    together = {name: [each.name for each in rows] for name, rows in models().items()}
    assert together[MAIN] == [MAIN, *CONTENT, "gold_regions"]
    assert sorted(name for names in together.values() for name in names) == sorted(each.name for each in ARMS)
    main, *rows = (_answering(config, arm(name)) for name in (MAIN, *CONTENT))
    for each, crop in zip(rows, ("black", "swap", "absent"), strict=True):
        assert each == replace(main, crop=crop, out=each.out)
    assert len({row.out for row in (main, *rows)}) == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One quick demo, killed with SIGKILL once two arms are trained, and started again."""
    place = tmp_path_factory.mktemp("demo")
    out, programs = place / "run", installed.environment(place)
    command = [*installed.offline(), str(programs / "cos"), "demo", "--quick", "--out", str(out)]
    world = {"cwd": place, "env": installed.variables(programs, place)}
    first = subprocess.Popen(command, **world, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 7200
    while len(list(out.glob("models/*/manifest.json"))) < 2:
        assert first.poll() is None, "the demo ended before it could be killed"
        assert time.monotonic() < deadline, "no arm was trained in time"
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("models/*/manifest.json")}
    # Workers end with their parent; until the last one has, its lock may stand.
    for _ in range(60):
        again = subprocess.run(command, **world, capture_output=True, text=True, timeout=7200, check=False)
        if again.returncode != 75:
            break
        time.sleep(1)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a finished arm was trained again"
    return out, again


@pytest.mark.slow
def test_killed_and_restarted_it_ends_with_the_table(finished: tuple[Path, subprocess.CompletedProcess[str]]):
    out, again = finished
    for each in ARMS:
        assert each.title in again.stdout
    assert str(out / "index.html") in again.stdout
    assert "cos infer --model" in again.stdout


@pytest.mark.slow
def test_results_hold_counts_intervals_and_statuses_beside_every_figure(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
):
    out, _ = finished
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["arms"]] == [a.name for a in ARMS]
    for row in results["arms"]:
        assert row["total"] == results["questions"] == 60
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["accuracy"] == pytest.approx(row["correct"] / row["total"])
        assert sum(t["total"] for t in row["kinds"].values()) == row["total"]
        if row["name"] != BASE:
            assert sum(row["status"].values()) == row["total"]
    gold = next(row for row in results["arms"] if row["name"] == "gold_regions")
    assert gold["hit"] == 1.0
    assert {row["policy"] for row in results["labels"]} >= {MAIN, "random", "gold"}
    assert {row["kind"] for row in results["differences"]} <= {None, *KINDS}
    assert len(results["effects"]) == 3
    main, *rows = (answers(out, name) for name in (MAIN, *CONTENT))
    for row, shown in zip(rows, ("black", "swap: ", "absent"), strict=True):
        assert [(each.box_text, each.box) for each in row] == [(each.box_text, each.box) for each in main], "one first pass"
        assert all((each.shown or "").startswith(shown) for each in row)


def answers(out: Path, name: str) -> list[Prediction]:
    lines = (out / "answers" / f"{name}.jsonl").read_text().splitlines()
    return [Prediction.from_json(json.loads(line)) for line in lines]


@pytest.mark.slow
def test_page_is_one_file_that_says_it_proves_nothing(finished: tuple[Path, subprocess.CompletedProcess[str]]):
    out, _ = finished
    page = (out / "index.html").read_text()
    assert 'class="banner"' in page
    assert all(arm.title in page for arm in ARMS)
    assert "Content-Security-Policy" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(finished: tuple[Path, subprocess.CompletedProcess[str]]):
    out, _ = finished
    other = subprocess.run(
        [*COMMAND, "--out", str(out), "--seed", "9"], capture_output=True, text=True, timeout=7200, check=False
    )
    assert other.returncode == 3
    assert "other settings" in other.stderr
    assert "Traceback" not in other.stderr
