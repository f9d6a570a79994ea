"""The runner `ray` on real clusters of two nodes on this machine: who dies, who differs, who cannot see what it needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from annotate_jobs import exported, failures, write_data
from children import wait_for_end
from reporters import Told
from tiny_llava import make_checkpoint
from toy_job import ToyJob

from cos_core import runners
from cos_core.annotate import AnnotateConfig, run
from cos_core.errors import InputError, MissingError
from cos_core.files import manifest
from cos_core.files.jsonl import read_lines
from cos_core.interfaces import SilentReporter
from cos_core.miniature.scenes import write_dataset
from cos_core.runners import RunnerConfig
from cos_core.store.annotations import is_store

ray = pytest.importorskip("ray", reason="the extra `scale` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).resolve().parent.parent
REACH = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without room for workers, and two nodes of one worker each."""
    from ray.cluster_utils import Cluster

    for name, value in {**REACH, "RAY_USAGE_STATS_ENABLED": "0"}.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    ray.shutdown()
    made.shutdown()


def on(cluster: Any, **changes: Any) -> RunnerConfig:
    return RunnerConfig(ray_address=cluster.address, workers=2, **changes)


def workers() -> list[int]:
    """Process ids of the actors on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::Member" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


class Meddler(Told):
    """Does something once a share of the work is done."""

    def __init__(self, at: int, what: Any) -> None:
        super().__init__()
        self.at, self.what, self.did = at, what, False

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        super().progress(stage, done, total, detail)
        if done >= self.at and not self.did and (total is None or done < total):
            self.did = True
            self.what()


@pytest.fixture
def job(tmp_path: Path) -> AnnotateConfig:
    """Sixty pictures, one broken, and a small model; fifteen portions: some are unread when the first is done."""
    write_data(tmp_path, [1, 2, 3] * 20)
    (tmp_path / "images" / "041.png").write_bytes(b"torn")
    model = make_checkpoint(tmp_path / "model", image_size=28)
    return AnnotateConfig(
        tmp_path / "data.json",
        tmp_path / "images",
        str(model),
        tmp_path / "whole",
        batch_images=3,
        keep_heat=True,
        device="cpu",
    )


def test_annotate_on_two_nodes_with_a_worker_and_a_node_killed(job: AnnotateConfig, cluster: Any) -> None:
    whole = run(job, Told())

    def kill_all() -> None:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)

    told = Meddler(3, kill_all)
    first = replace(job, out=job.out.with_name("worker"), scale=on(cluster, ship_images=True))
    assert run(first, told).counts == whole.counts
    assert told.did
    assert any("done again" in text for text in told.warnings)
    assert exported(first) == exported(job)
    assert failures(first) == failures(job)

    told = Meddler(3, lambda: cluster.remove_node(cluster.nodes.pop(), allow_graceful=False))
    second = replace(job, out=job.out.with_name("node"), scale=on(cluster))
    assert run(second, told).counts == whole.counts
    assert told.did
    assert exported(second) == exported(job)
    for pid in workers():
        wait_for_end(pid)


def test_answers_and_scores_of_a_cluster_are_those_of_this_process(tmp_path: Path, cluster: Any) -> None:
    """`cos eval` with the miniature over two arms: every byte of the answers but the seconds, and every score."""
    from cos_cli.main import run as cos

    write_dataset(tmp_path / "scenes", 14, 7, 3)
    given = ["eval", "scenes", "--data", str(tmp_path / "scenes"), "--model", "miniature", "--device", "cpu", "--quiet"]
    given += ["--batch-size", "4", "--max-new-tokens", "4", "--roi", "none,model"]
    assert cos([*given, "--out", str(tmp_path / "here")]) == 0
    killed = threading.Thread(target=kill_one_that_works, args=(tmp_path / "there",))
    killed.start()
    there = ["--out", str(tmp_path / "there"), "--ray-address", cluster.address, "--workers", "2", "--ship-images"]
    assert cos([*given, *there]) == 0
    killed.join()
    for arm in ("none", "model"):
        here, far = tmp_path / "here" / arm / "scenes", tmp_path / "there" / arm / "scenes"
        assert answers(far) == answers(here)
        assert (far / "scores.jsonl").read_bytes() == (here / "scores.jsonl").read_bytes()
        assert manifest.read(far).results == manifest.read(here).results


def answers(folder: Path) -> list[Any]:
    return [{k: v for k, v in record.items() if k != "seconds"} for _, record in read_lines(folder / "predictions.jsonl")]


def kill_one_that_works(out: Path) -> None:
    """Once the first answers are written."""
    until = time.monotonic() + 7200
    while time.monotonic() < until:
        if any(path.stat().st_size for path in out.glob("*/*/predictions.jsonl")) and (team := workers()):
            os.kill(team[0], signal.SIGKILL)
            return
        time.sleep(0.01)
    raise AssertionError("nothing was answered")


def test_what_a_worker_lacks_is_one_sentence_and_nothing_is_written(job: AnnotateConfig, cluster: Any) -> None:
    scale = on(cluster)
    # The nodes share this machine's files, so what they cannot see is what nobody can.
    absent = replace(job, model=str(job.out.with_name("absent")), scale=scale)
    with pytest.raises((InputError, MissingError), match=r"absent.*on the worker on .*process"):
        run(absent, Told())
    blind = ToyJob(job.out.parent, fails="a worker cannot see the image folder /data")
    with (
        runners.build(scale, blind, "cpu", SilentReporter()) as runner,
        pytest.raises(InputError, match="/data"),
    ):
        list(runner.map([[1]]))
    assert not is_store(absent.out)


def test_a_node_with_another_version_is_refused(
    job: AnnotateConfig, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray lets workers look where the driver stands first.
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(ROOT / "cos_core", other / "cos_core", ignore=shutil.ignore_patterns("miniature", "__pycache__"))
    shutil.copytree(ROOT / "templates", other / "templates")
    init = other / "cos_core" / "__init__.py"
    init.write_text(init.read_text(encoding="utf-8").replace('__version__ = "', '__version__ = "99.'), encoding="utf-8")
    for node in cluster.nodes:
        cluster.remove_node(node)
    cluster.nodes = [cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{other}{os.pathsep}{REACH['PYTHONPATH']}"})]
    with pytest.raises(InputError, match=r"cos 99\."):
        run(replace(job, scale=replace(on(cluster), workers=1)), Told())
    assert not is_store(job.out)


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    for address in ("127.0.0.1:1", "no-such-host.invalid:6379"):
        with pytest.raises(MissingError, match=address):
            runners.build(RunnerConfig(ray_address=address), ToyJob(tmp_path), "cpu", SilentReporter())
    with pytest.raises(InputError, match="HOST:PORT"):
        runners.build(RunnerConfig(ray_address="head"), ToyJob(tmp_path), "cpu", SilentReporter())


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from cos_cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_from_the_command_line(job: AnnotateConfig) -> None:
    """Started for the run and ended with it; without Ray, exit code 4 and a sentence."""
    given = ["annotate", "--model", job.model, "--data", job.data, "--images", job.images, "--device", "cpu", "--json"]
    many = ["--runner", "ray", "--workers", "2", "--out", job.out.with_name("cli")]
    environment = {**os.environ, **REACH}
    command = [sys.executable, "-m", "cos_cli", *map(str, given + many)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["ok"] > 100
    command = [sys.executable, "-c", WITHOUT_RAY, *map(str, given + many)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7200, env=environment, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "[scale]" in done.stderr
    assert "Traceback" not in done.stderr
