"""How the processes of a run wait for one another, and for the disk: threads stand for processes at one store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from training_world import NO_SIZE

from cos_core.errors import CosError, InputError
from cos_core.interfaces import SilentReporter
from cos_core.training import resume_points
from cos_core.training.ranks import Ranks


def together(size: int, act: Callable[[Ranks, int], Any]) -> list[Any]:
    """What each of `size` processes gives or raises."""
    from torch.distributed import HashStore

    store = HashStore()

    def one(rank: int) -> Any:
        ranks = Ranks(store, rank, size)
        try:
            return act(ranks, rank)
        except CosError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def test_all_wait_for_the_slowest_and_hear_what_each_brings() -> None:
    begun = time.monotonic()

    def act(ranks: Ranks, rank: int) -> tuple[float, list[Any]]:
        time.sleep(0.3 * (rank == 2))
        ranks.wait()
        here = time.monotonic() - begun
        return here, ranks.gather({"rank": rank})

    results = together(3, act)
    assert all(here >= 0.3 for here, _ in results)
    assert all(brought == [{"rank": 0}, {"rank": 1}, {"rank": 2}] for _, brought in results)


def test_the_process_that_holds_the_store_leaves_last() -> None:
    """Whoever waits looks at the store only now and then: a first process that left at once would be gone with it."""
    users: list[int] = []

    class Used:
        def __init__(self, store: Any, rank: int) -> None:
            self._store, self._rank = store, rank

        def __getattr__(self, name: str) -> Any:
            users.append(self._rank)
            return getattr(self._store, name)

    def act(ranks: Ranks, rank: int) -> None:
        ranks._store = Used(ranks._store, rank)
        time.sleep(0.2 * (rank == 0))
        ranks.wait()

    for _ in range(3):
        users.clear()
        together(3, act)
        assert users[-1] == 0


def test_the_first_works_while_the_others_wait() -> None:
    worked = threading.Event()

    def act(ranks: Ranks, rank: int) -> bool:
        def work() -> None:
            assert rank == 0
            time.sleep(0.1)
            worked.set()

        ranks.first(work)
        return worked.is_set()

    assert together(3, act) == [True] * 3


def test_a_failure_of_one_ends_all_with_its_sentence() -> None:
    def first(ranks: Ranks, rank: int) -> None:
        def work() -> None:
            raise InputError("the data has 3 faults")

        ranks.first(work)

    told = together(3, first)
    assert [type(error) for error in told] == [InputError] * 3
    assert [str(error) for error in told] == ["the data has 3 faults", *["process 0 ended: the data has 3 faults"] * 2]

    def third(ranks: Ranks, rank: int) -> None:
        if rank == 2:
            error = OSError("the disk is full")
            ranks.failed(error)
            raise CosError(str(error))
        ranks.wait()

    assert [str(error) for error in together(3, third)] == [
        *["process 2 ended with OSError: the disk is full"] * 2,
        "the disk is full",
    ]


def test_a_broken_collective_is_told_from_its_cause() -> None:
    def act(ranks: Ranks, rank: int) -> CosError | None:
        if rank == 0:
            ranks.failed(InputError("memory ran out"))
            return ranks.cause()
        while (cause := ranks.cause()) is None:
            time.sleep(0.01)
        ranks.failed(RuntimeError("connection closed by peer"))
        return cause

    first, second = together(2, act)
    assert first is None, "the one that failed is the cause"
    assert isinstance(second, InputError)
    assert str(second) == "process 0 ended: memory ran out"
    assert Ranks.of_launcher(0, 1).cause() is None


def test_one_that_fails_with_all_others_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad data is found by every process at once."""

    def act(ranks: Ranks, rank: int) -> None:
        ranks.failed(InputError("no"))

    monkeypatch.setattr("cos_core.training.ranks._NOTICE_SECONDS", 600.0)
    begun = time.monotonic()
    together(4, act)
    assert time.monotonic() - begun < 100


def test_a_process_alone_waits_for_nobody() -> None:
    ranks = Ranks.of_launcher(0, 1)
    ranks.wait()
    assert ranks.gather(3) == [3]
    done: list[int] = []
    ranks.first(lambda: done.append(1))
    assert done == [1]
    ranks.failed(CosError("no"))


# A checkpoint's files

FILES = {
    "model.safetensors": 0,
    "config.json": 0,
    "trainer_state.json": 0,
    "latest": 0,
    "rng_state.pth": 0,
    "rng_state_0.pth": 0,
    "rng_state_1.pth": 1,
    "global_step3/mp_rank_00_model_states.pt": 0,
    "global_step3/zero_pp_rank_1_mp_rank_00_optim_states.pt": 1,
    "global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": 0,
    "global_step3/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": 1,
    "global_step3/zero_pp_rank_1_mp_rank_00_model_states.pt": 1,
    "rng_state_7.pth": 0,
}
"""Whose they are among two processes; of a rank that there is not, somebody's all the same."""


def test_each_process_flushes_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint-3"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    flushed: list[str] = []
    fsync = os.fsync

    def sync(number: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{number}").readlink().relative_to(folder)))
        fsync(number)

    sizes = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        for rank in range(2):
            flushed.clear()
            sizes.append(resume_points.flush(folder, rank, 2))
            assert set(flushed) == {name for name, owner in FILES.items() if owner == rank} == set(sizes[-1])
            assert len(flushed) == len(sizes[-1]), "each once"
    resume_points.mark_whole(folder, sizes)
    record = resume_points.record_of(folder)
    assert record == {"step": 3, "processes": 2, "files": {name: len(name) for name in FILES}}
    (folder / "latest").write_text("longer than before")
    assert resume_points.record_of(folder) is None


# The interval between checkpoints


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("save_seconds", "expected", "warnings"),
    [
        # Asked for every 600 s, a step each 100 s. One that takes 20 s is 5 % of 400 s: nothing changes.
        (20.0, [600, 1220, 1840], 0),
        # 60 s are 5 % of 1200 s.
        (60.0, [600, 1860, 3120], 1),
        # One that takes 45 s is 5 % of 900 s.
        (45.0, [600, 1545, 2490], 1),
    ],
)
def test_checkpoints_by_the_clock_take_no_more_than_their_share(
    tmp_path: Path, save_seconds: float, expected: list[int], warnings: int
) -> None:
    """A clock of the test's own: when each save is asked for. Said once."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from cos_core.training.callback import CallbackSettings, StopRequest, TrainingCallback
    from cos_core.training.sample_order import BatchSizes, SampleOrder

    class Trainer:
        contents = ()
        skipped: dict[str, str] = {}  # noqa: RUF012

        def wait_in_deepspeed(self) -> None: ...

        def finish_checkpoint(self) -> float:
            return save_seconds

    now = 0.0
    ears = Warnings()
    settings = CallbackSettings(tmp_path, ears, None, NO_SIZE, None, 10.0, clock=lambda: now)
    callback = TrainingCallback(SampleOrder(1, 0, BatchSizes(1, 1, 1)), settings, StopRequest())
    callback.trainer = Trainer()  # type: ignore[assignment]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=1000, report_to="none")
    state, control = TrainerState(max_steps=1000, is_world_process_zero=True), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    asked: list[float] = []
    while len(asked) < 3:
        now += 100
        state.global_step += 1
        control.should_save = False
        callback.on_step_end(arguments, state, control)
        if control.should_save:
            asked.append(now)
            now += save_seconds
            callback.on_save(arguments, state, control)
    assert asked == expected
    assert len(ears.said) == warnings
    assert all("not 10: writing may take 5 % of the time" in text for text in ears.said)
