"""Settings of all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right. Every machine sees the same examples.
settings.register_profile("cos", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cos")


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
