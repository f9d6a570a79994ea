"""What is watched while a run goes: the guards, the clock of the checkpoints, signals, the log and the progress line."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cos_core.errors import CosError
from cos_core.files.jsonl import DurableWriter
from cos_core.interfaces import Reporter
from cos_core.training.flops import ModelSize
from cos_core.training.folder import STOP_FILE
from cos_core.training.order import Order
from cos_core.training.trainer import named

if TYPE_CHECKING:
    from cos_core.training.trainer import ChainTrainer

_FEW_STEPS = 30
_BAD_NORMS, _BAD_NORMS_SCALED = 3, 24
"""Steps in a row that a gradient norm may be infinite: one such step can be an accident of bfloat16. Where losses are scaled
(float16) the scale begins at 2**16, and such a step halves it and is passed over."""
_SAVING_SHARE = 0.05
"""Share of the time between two checkpoints by the clock that writing one may take."""


class StopRequest:
    """Set by the first SIGTERM or SIGINT: the run finishes its step, writes a checkpoint and ends. A second one ends it."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, _frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def listening(self, alone: bool) -> Iterator[StopRequest]:
        """Handles the two signals inside; only the main thread may, elsewhere nothing changes.

        Not `alone`, a process that waits in vain for one that was killed must die at the launcher's first word: there a stop is
        asked for by STOP_FILE, which the launcher's own signals become.
        """
        if not alone or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(slots=True)
class StepTotals:
    """Sums over all processes for one optimiser step."""

    stop: float = 0.0
    save: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    pictures: float = 0.0
    padding: float = 0.0
    skipped: float = 0.0
    fallbacks: float = 0.0

    def over_all(self, device: Any) -> StepTotals:
        """The sums over all processes; every process must ask in the same step."""
        names = [*StepTotals.__slots__]
        values = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64, device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
        return StepTotals(*values.tolist())


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What the watch needs to know. `peak`: FLOP/s of all devices together, None when unknown; `log`: on the main process.

    `regions`: samples have regions, or should have; `scaled`: losses are scaled, as float16 needs it; `clock`: seconds.
    """

    out: Path
    reporter: Reporter
    log: DurableWriter | None
    size: ModelSize
    peak: float | None
    save_minutes: float | None
    adapters: bool = False
    regions: bool = True
    scaled: bool = False
    clock: Callable[[], float] = time.monotonic


class TrainingCallback(TrainerCallback):
    """Sets the epoch of the data order, asks for checkpoints, writes train_log.jsonl, drives the Reporter, stops bad runs."""

    def __init__(self, order: Order, station: WatchSettings, request: StopRequest) -> None:
        self._order, self._station, self._request = order, station, request
        self.trainer: ChainTrainer | None = None
        self.stopped = False
        self._last = self._saved = station.clock()
        self._pause = 60 * (station.save_minutes or 0.0)
        self._bad_norms = 0
        self._tally = StepTotals()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = self._saved = self._station.clock()
        if args.max_steps <= 0 and state.max_steps < _FEW_STEPS:
            self._station.reporter.warn(f"only {state.max_steps} optimiser steps; a smaller global batch gives more")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # `state.epoch` is a whole number at an epoch's start and a fraction where a resumed run goes on inside one.
        self._order.epoch = int(state.epoch or 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        main = state.is_world_process_zero
        timed = self._station.save_minutes is not None
        due = main and timed and self._station.clock() - self._saved >= self._pause
        asked = self._request.asked or (main and (self._station.out / STOP_FILE).exists())
        mine = StepTotals(stop=float(asked), save=float(due), skipped=float(len(self.trainer.skipped) if self.trainer else 0))
        for contents in self.trainer.contents if self.trainer else []:
            mine.tokens += contents.tokens
            mine.squares += contents.squares
            mine.pictures += contents.pictures
            mine.padding += contents.padding
            mine.fallbacks += contents.fallbacks
        # One sum for everything: all processes must decide alike.
        self._tally = mine.over_all(args.device)
        if self._tally.stop and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
        if self._tally.save or self.stopped:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Checkpoints by the clock follow at the interval asked for, or a longer one where writing takes too much of it."""
        self._saved = self._station.clock()
        minutes, took = self._station.save_minutes, self.trainer.save_seconds if self.trainer else 0.0
        if minutes is None:
            return
        asked, before = 60 * minutes, self._pause
        self._pause = max(asked, took / _SAVING_SHARE)
        if self._pause > asked and before == asked and not self.stopped:
            self._station.reporter.warn(
                f"a checkpoint took {took:.3g} s to write, so the next ones follow after {self._pause / 60:.3g} minutes, not "
                f"{minutes:g}: writing may take {100 * _SAVING_SHARE:.0f} % of the time"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), logs.get("grad_norm")
        self._guard(loss, norm, state.global_step)
        now = self._station.clock()
        seconds = now - self._last
        self._last = now
        tally = self._tally
        rate = tally.tokens / seconds if seconds > 0 else 0.0
        peak = self._station.peak
        flops = self._station.size.step_flops(
            int(tally.tokens), int(tally.squares), int(tally.pictures), self._station.adapters
        )
        record = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 6),
            "loss": loss,
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            "learning_rate": logs.get("learning_rate"),
            "seconds": round(seconds, 4),
            "tokens": int(tally.tokens),
            "padding": round(tally.padding / max(1.0, tally.tokens + tally.padding), 4),
            "mfu": round(flops / seconds / peak, 4) if peak and seconds > 0 else None,
            "skipped": int(tally.skipped),
            "fallbacks": int(tally.fallbacks),
        }
        if self._station.log is not None:
            self._station.log.append(record)
            if control.should_save:
                # A checkpoint goes on from here: the lines before it must not be lost in a power cut that it survives.
                self._station.log.flush()
        detail = [f"loss {loss:.4f}", f"lr {logs.get('learning_rate') or 0:.2g}", f"{rate:.3g} tokens/s"]
        if record["mfu"] is not None:
            detail.append(f"MFU {100 * float(record['mfu']):.0f} %")
        # Never silent about samples that were replaced for their picture's sake, or trained without a region of their own.
        detail += [f"{record['skipped']} skipped"]
        detail += [f"{record['fallbacks']} without a region"] if self._station.regions else []
        self._station.reporter.progress("train", state.global_step, state.max_steps, ", ".join(detail))

    def _guard(self, loss: float, norm: float | None, step: int) -> None:
        """Stops the run, with its samples named, on a loss that teaches nothing or gradients that have burst."""
        wrong = None
        if not math.isfinite(loss):
            todo = "lower the learning rate or look at the data"
            if step <= 1:
                todo = "nothing was learnt before it, so look at the start checkpoint's weights, then at the data"
            wrong = f"the loss became {loss} at step {step}; {todo}"
        elif loss == 0.0:
            wrong = f"the loss is exactly 0 at step {step}, so nothing is learnt; look at the labels"
        self._bad_norms = self._bad_norms + 1 if norm is not None and not math.isfinite(norm) else 0
        if self._bad_norms > (_BAD_NORMS_SCALED if self._station.scaled else _BAD_NORMS):
            wrong = f"the gradient norm was not finite for {self._bad_norms} steps up to step {step}; lower the learning rate"
        if wrong:
            raise CosError(f"{wrong} (samples of this step: {named(self._samples())})")

    def _samples(self) -> list[str]:
        """The samples of the step, of all processes, which all stand here when one does: the loss is theirs together."""
        mine = [name for contents in (self.trainer.contents if self.trainer else []) for name in contents.ids]
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return mine
        every: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(every, mine)
        return [name for part in every for name in part]
