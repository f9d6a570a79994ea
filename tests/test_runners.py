"""Runners: the same results in the same order in every runner and when workers die, with bounded reading ahead."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from children import children
from reporters import Told
from toy_job import ToyJob

from cos_core import runners
from cos_core.errors import CosError, InputError
from cos_core.interfaces import SilentReporter, Worker
from cos_core.runners import RunnerConfig, _dealer
from cos_core.runners._dealer import Dealer, Died, Done, Ready, WorkerEvent
from cos_core.runners.processes import build as build_processes
from cos_core.system import memory

SQUARES = [[n * n for n in range(k, k + 3)] for k in range(0, 60, 3)]
PORTIONS = [list(range(k, k + 3)) for k in range(0, 60, 3)]


def mapped(job: ToyJob, config: RunnerConfig, portions: Sequence[Any] = PORTIONS, told: Told | None = None) -> list[Any]:
    with runners.build(config, job, "cpu", told or SilentReporter()) as runner:
        return list(runner.map(portions))


TWO = RunnerConfig(workers=2)


class TestProcesses:
    def test_as_local(self, tmp_path: Path) -> None:
        job = ToyJob(tmp_path)
        assert mapped(job, RunnerConfig()) == mapped(job, TWO) == SQUARES
        assert len(list(tmp_path.glob("worker-*"))) > 1
        assert not children()

    def test_a_worker_that_dies_costs_time_alone(self, tmp_path: Path) -> None:
        told = Told()
        assert mapped(ToyJob(tmp_path, once=10), TWO, told=told) == SQUARES
        assert (tmp_path / "once").exists()
        assert len(told.warnings) == 1
        assert "exit code -9" in told.warnings[0]

    def test_an_example_that_kills_its_workers_fails_alone(self, tmp_path: Path) -> None:
        found = mapped(ToyJob(tmp_path, poison=10), TWO, [list(range(k, k + 8)) for k in range(0, 32, 8)])
        flat = list(itertools.chain.from_iterable(found))
        assert [x for n, x in enumerate(flat) if n != 10] == [n * n for n in range(32) if n != 10]
        assert flat[10].startswith("10: ")
        assert "exit code -9" in flat[10]

    def test_what_a_worker_refuses_is_the_runs_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="31"):
            mapped(ToyJob(tmp_path, refuse=31), TWO)
        with pytest.raises(InputError, match="no model"):
            mapped(ToyJob(tmp_path, fails="no model"), TWO)
        assert not children()

    def test_workers_that_never_live_end_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(CosError, match="exit code 9"):
            mapped(ToyJob(tmp_path, stillborn=True), TWO)

    def test_large_portions_and_results_do_not_lock_up(self, tmp_path: Path) -> None:
        portions = [[n, b"x" * 2**21] for n in range(12)]
        found = mapped(_Long(tmp_path, large=2**20), TWO, portions)
        assert [len(result[0]) for result in found] == [len(str(n)) * 2**20 for n in range(12)]

    def test_stopped_in_the_middle_and_asked_again(self, tmp_path: Path) -> None:
        with runners.build(TWO, ToyJob(tmp_path), "cpu", SilentReporter()) as runner:
            first = runner.map(PORTIONS)
            assert next(first) == SQUARES[0]
            first.close()
            assert not multiprocessing.active_children()
            assert list(runner.map(PORTIONS)) == SQUARES
            assert runner.about["fingerprint"] == "f"

    @pytest.mark.parametrize(
        ("names", "workers", "expected", "notes"),
        [
            (["cuda:0", "cuda:1"], 5, {"cuda:0": 1, "cuda:1": 1}, 1),
            (["cuda:0", "cuda:0"], None, {"cuda:0": 1}, 1),
            (["cuda:0", "cuda:1"], None, {"cuda:0": 1, "cuda:1": 1}, 0),
            (["cpu"], 3, {"cpu": 3}, 0),
        ],
    )
    def test_a_gpu_has_one_worker_and_a_cpu_is_shared(
        self, tmp_path: Path, names: list[str], workers: int | None, expected: dict[str, int], notes: int
    ) -> None:
        """The GPUs exist in name only: no worker here computes on one."""
        told = Told()
        dealer = build_processes(RunnerConfig(workers=workers), _Sharing(tmp_path), "auto", lambda: names, told)
        with dealer:
            found = list(dealer.map([[n] for n in range(60)]))
        assert {device: sharers for ((device, sharers, _),) in found} == expected
        assert len(told.notes) == notes

    def test_a_worker_expects_the_portion_after_the_one_it_works_on(self, tmp_path: Path) -> None:
        found = mapped(_Sharing(tmp_path), TWO, [[n] for n in range(12)])
        assert all(n in expected for n, ((_, _, expected),) in enumerate(found) if n >= 4)


class _Sharing(ToyJob):
    """Its results: the device, how many share it, and the numbers that the worker expects."""

    def start(self, device: str) -> _SharingWorker:  # type: ignore[override]
        return _SharingWorker(device)


class _SharingWorker(Worker):
    about: Mapping[str, Any] = {"fingerprint": "f"}

    def __init__(self, device: str) -> None:
        self._device = device
        self._expected: set[int] = set()

    def expect(self, portion: Sequence[int]) -> None:
        self._expected |= set(portion)

    def work(self, portions: Iterable[Sequence[int]]) -> Iterator[list[Any]]:
        for _ in portions:
            time.sleep(0.02)
            yield [(self._device, memory._sharers, set(self._expected))]


class _Long(ToyJob):
    def start(self, device: str) -> Any:
        return _Firsts(self)


class _Firsts(Worker):
    about: Mapping[str, Any] = {"fingerprint": "f"}

    def __init__(self, job: ToyJob) -> None:
        self._job = job

    def work(self, portions: Any) -> Iterator[list[bytes]]:
        for portion in portions:
            yield [b"%d" % portion[0] * self._job.large]


class ScriptedTeam:
    """A Team without processes, a fake for orders that cannot be forced: the latest portion is answered first."""

    def __init__(self, size: int, about: Sequence[dict[str, Any]] | None = None) -> None:
        self.size = size
        self.about = about or [{"fingerprint": "f"}] * size
        self.events: list[tuple[int, WorkerEvent]] = []
        self.sent: list[tuple[int, Any]] = []

    def begin(self, place: int) -> None:
        self.events.append((place, Ready(self.about[place], f"on node {place}")))

    def send(self, place: int, portion: Any) -> None:
        self.sent.append((place, portion))

    def listen(self) -> list[tuple[int, WorkerEvent]]:
        if self.events:
            now, self.events = self.events, []
            return now
        # The latest first, so that answers come out of order.
        place, portion = self.sent.pop()
        older = [n for n, (p, _) in enumerate(self.sent) if p == place]
        if older:
            self.sent.append((place, portion))
            place, portion = self.sent.pop(older[0])
        return [(place, Done([portion]))]

    def close(self) -> None: ...


class TestDealing:
    def test_order_and_reading_ahead(self, tmp_path: Path) -> None:
        read = 0

        def portions() -> Iterator[int]:
            nonlocal read
            for number in range(1000):
                read = number
                yield number

        taken = 0
        team = ScriptedTeam(3)
        for result in Dealer(ToyJob(tmp_path), team, SilentReporter()).map(portions()):
            assert result == taken
            taken += 1
            assert read - taken <= _dealer.AHEAD * 3
            assert max((sum(p == place for p, _ in team.sent) for place in range(3)), default=0) <= _dealer.QUEUE
        assert taken == 1000

    def test_workers_that_are_not_the_same_are_refused(self, tmp_path: Path) -> None:
        other = ScriptedTeam(2, [{"fingerprint": "f"}, {"fingerprint": "g"}])
        with pytest.raises(InputError, match=r"node 1 .*node 0 .*fingerprint"):
            list(Dealer(ToyJob(tmp_path), other, SilentReporter()).map(range(5)))
        here = {"versions": {**_dealer.versions(), "torch": "1.0"}}
        with pytest.raises(InputError, match=r"node 0 .*torch 1\.0 "):
            list(Dealer(ToyJob(tmp_path), ScriptedTeam(1, [here]), SilentReporter()).map(range(5)))
        mixed = [{"versions": _dealer.versions()}, here]
        with pytest.raises(InputError, match=r"node 1 .*torch 1\.0 .*node 0"):
            list(Dealer(ToyJob(tmp_path), ScriptedTeam(2, mixed), SilentReporter()).map(range(5)))

    def test_the_run_ends_when_every_example_kills(self, tmp_path: Path) -> None:
        class Deadly(ScriptedTeam):
            def listen(self) -> list[tuple[int, WorkerEvent]]:
                if self.events:
                    return super().listen()
                place, _ = self.sent.pop()
                self.sent = [(p, x) for p, x in self.sent if p != place]
                return [(place, Died("died (exit code -7)"))]

        with pytest.raises(CosError, match="exit code -7"):
            list(Dealer(ToyJob(tmp_path), Deadly(1), SilentReporter()).map(PORTIONS))


def test_settings() -> None:
    assert RunnerConfig().chosen(lambda: ["cpu"]) == "local"
    assert RunnerConfig().chosen(lambda: ["cuda:0", "cuda:1"]) == "processes"
    assert RunnerConfig(workers=1).chosen(lambda: ["cuda:0", "cuda:1"]) == "local"
    assert RunnerConfig(workers=2).chosen(list) == "processes"
    assert RunnerConfig(ray_address="a:1").chosen(list) == "ray"
    for wrong in ({"workers": 0}, {"runner": "processes", "ray_address": "a:1"}, {"runner": "local", "workers": 2}):
        with pytest.raises(InputError):
            RunnerConfig(**wrong)
    with pytest.raises(InputError, match=r"'rays'.*'ray'"):
        runners.build(RunnerConfig("rays"), ToyJob(Path()), "cpu", SilentReporter(), None)
