"""Settings of all tests."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right. Every machine sees the same examples.
settings.register_profile("cos", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cos")

DEAREST_FIRST = [
    "test_faults.py",
    "test_runners_ray.py",
    "test_readme.py",
    "test_training_matrix.py",
    "test_families.py",
    "test_training_processes.py",
    "test_newcomer.py",
    "test_general.py",
    "test_demo.py",
    "test_benchmark_gpu.py",
    "test_strange_checkpoints.py",
    "test_infer_model.py",
    "test_served_families_server.py",
    "test_annotate_workers.py",
    "test_training_sample_table.py",
    "test_engine_hf.py",
    "test_prefix_reuse.py",
    "test_engine_openai_server.py",
    "test_relevance_out_of_memory.py",
    "test_training_loading.py",
    "test_hostile_inputs.py",
    "test_eval_unattended.py",
    "test_training_callback.py",
    "test_training_runs.py",
    "test_benchmark_two_pass.py",
]
"""Test files that take half a minute or more: begun last, one would keep a process busy when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turns = {name: turn for turn, name in enumerate(DEAREST_FIRST)}
    items.sort(key=lambda item: turns.get(item.path.name, len(turns)))


def _keep_out_of_collections() -> None:
    """Nothing that is there now is looked through for garbage again: imported libraries are most of what a collection takes."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    _keep_out_of_collections()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Once a file: its tests may have imported more."""
    if nextitem is not None and nextitem.path != item.path:
        _keep_out_of_collections()


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same number of threads here and in processes started from here: it decides the last bits of a sum."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_checkpoint(name, **options)`: the folder of a checkpoint as tiny_families.build writes it, built once a session.

    The folder is shared: a test that changes a file copies it first.
    """
    import tiny_families

    built: dict[str, Path] = {}

    def checkpoint(name: str, **options: Any) -> Path:
        key = repr((name, sorted(options.items())))
        if key not in built:
            built[key] = tiny_families.build(name, tmp_path_factory.mktemp(name), **options)
        return built[key]

    return checkpoint
