"""What says that memory ran out, what is freed then, and how much there is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cos_core.errors import InputError
from cos_core.system import memory

CUBLAS = "CUDA error: CUBLAS_STATUS_{} when calling `{}`"
MESSAGES: list[tuple[BaseException, bool]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"), True),
    (MemoryError(), True),
    (OSError(12, "Cannot allocate memory"), True),
    (OSError(28, "No space left on device"), False),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
    (RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8589934592 bytes."), True),
    (RuntimeError("unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)"), True),
    (RuntimeError("std::bad_alloc"), True),
    (RuntimeError("could not create a primitive"), True),
    (RuntimeError("could not create a memory object"), True),
    (RuntimeError(CUBLAS.format("ALLOC_FAILED", "cublasCreate(handle)")), True),
    (RuntimeError(CUBLAS.format("NOT_INITIALIZED", "cublasCreate(handle)")), True),
    (RuntimeError(CUBLAS.format("NOT_INITIALIZED", "cublasLtCreate(&handle)")), True),
    (RuntimeError(CUBLAS.format("NOT_INITIALIZED", "cublasGemmEx(handle, opa, opb, m, n, k)")), False),
    (RuntimeError(CUBLAS.format("EXECUTION_FAILED", "cublasSgemm(handle)")), False),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
    (RuntimeError("GET was unable to find an engine to execute this computation"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"), False),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
    (RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"), True),
    (RuntimeError("NCCL error: ncclUnhandledCudaError: Failed to CUDA calloc 6291456 bytes"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    (InputError("out of memory, says a file's name"), False),
]  # fmt: skip


@pytest.mark.parametrize(("error", "memory_ran_out"), MESSAGES, ids=[str(error)[:60] for error, _ in MESSAGES])
def test_the_words_of_every_library(error: BaseException, memory_ran_out: bool) -> None:
    assert memory.is_out_of_memory(error) == memory_ran_out


def test_the_allocator_of_this_machine_is_understood() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    assert "allocate memory" in memory.reason(caught.value)


class Held:
    """Something to refer to weakly."""


def test_what_a_failed_attempt_held_is_freed() -> None:
    seen: list[weakref.ref[Held]] = []

    def attempt() -> None:
        held, cyclic = Held(), Held()
        cyclic.__dict__["itself"] = cyclic
        seen.extend([weakref.ref(held), weakref.ref(cyclic)])
        try:
            raise ValueError("first")
        except ValueError:
            raise torch.OutOfMemoryError("CUDA out of memory") from None

    with pytest.raises(torch.OutOfMemoryError) as caught:
        attempt()
    assert all(each() is not None for each in seen)
    memory.let_go(caught.value)
    assert [each() for each in seen] == [None, None]
    assert memory.reason(caught.value) == "CUDA out of memory"


def test_parts_become_smaller_until_they_fit() -> None:
    asked: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        if len(items) > 2 or (7 in items and len(items) > 1):
            raise MemoryError
        return [item * item for item in items]

    allowance = memory.Allowance(patience=2)
    assert memory.in_parts([1, 2, 3, 7, 8], run, 4, allowance) == [1, 4, 9, 49, 64]
    assert asked == [[1, 2, 3, 7], [1, 2], [3, 7], [3], [7], [8]]
    asked.clear()
    assert memory.in_parts([1, 2, 3], run, 4, allowance) == [1, 4, 9]
    assert asked == [[1, 2], [3]], "what fitted is remembered, and tried twice as large after two that did"
    assert memory.in_parts([], run, 4, allowance) == []

    def hopeless(items: Sequence[int]) -> list[int]:
        raise RuntimeError(CUBLAS.format("ALLOC_FAILED", "cublasCreate(handle)"))

    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        memory.in_parts([1, 2], hopeless, 2, allowance)


def test_an_allowance_grows_back_and_learns_not_to_try_too_often() -> None:
    rows = memory.Allowance(patience=2)
    rows.fitted(16)
    assert rows.limit is None
    rows.ran_out(16)
    assert rows.limit == 8
    rows.fitted(4)  # half full: nothing is learnt
    rows.fitted(8)
    assert rows.limit == 8
    rows.fitted(8)
    assert rows.limit == 16
    rows.ran_out(16)
    assert (rows.limit, rows.patience) == (8, 4)
    for _ in range(4):
        rows.fitted(8)
    rows.fitted(16)
    rows.ran_out(16)  # an outlier after what had fitted: no lesson about growing
    assert (rows.limit, rows.patience) == (8, 4)
    rows.ran_out(1)
    assert rows.limit == 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU of 80 GiB on which this process has allocated 14 GiB of the 15 that it reserved, and another one 20."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (45 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 14 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 15 * gib)
    return SimpleNamespace(type="cuda")


@pytest.mark.parametrize(("workers", "gib"), [(1, 46), (2, 26), (4, 6), (8, 0)])
def test_workers_on_one_gpu_share_it(gpu: Any, workers: int, gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_sharers", 1)
    memory.share_device(workers)
    assert memory.available(gpu) == gib * 2**30


def test_workers_on_one_cpu_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_system_memory", lambda: 12 * 2**30)
    monkeypatch.setattr(memory, "_sharers", 3)
    assert memory.available("cpu") == memory.available(torch.device("cpu")) == 4 * 2**30


def test_the_system_says_something_sensible() -> None:
    assert 2**26 < memory.available("cpu") < 2**50
