"""The training callback: guards, checkpoints by the clock, stop requests, the log and the progress line."""

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
from cos_core.files.durable_writer import DurableWriter
from cos_core.interfaces import Reporter
from cos_core.models.flops import ModelSize
from cos_core.training.collate import BatchContents
from cos_core.training.flops import step_flops
from cos_core.training.run_folder import STOP_FILE
from cos_core.training.sample_order import SampleOrder
from cos_core.training.trainer import listed

if TYPE_CHECKING:
    from cos_core.training.trainer import ChainTrainer

_FEW_STEPS = 30
_BAD_NORMS, _BAD_NORMS_SCALED = 3, 24
"""Steps in a row with an infinite gradient norm that are allowed: one such step can be an accident of bfloat16. With scaled
losses (float16) the scale starts at 2**16, and each such step halves it and is skipped."""
_SAVING_SHARE = 0.05
"""Largest share of the time between two checkpoints by the clock that writing one may take."""


class StopRequest:
    """Set by the first SIGTERM or SIGINT: the run finishes its step, writes a checkpoint and ends. A second signal ends it."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, _frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def installed(self, alone: bool) -> Iterator[StopRequest]:
        """Handles the two signals inside the block; only the main thread may, elsewhere nothing changes.

        With several processes (not `alone`) nothing changes either: a process that waits for a killed one must die at the
        launcher's first signal. There a stop is requested by STOP_FILE, which the launcher writes when it gets a signal.
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
    """Sums over all processes for one optimiser step; `stop`, `save`: how many processes ask for it."""

    stop: float = 0.0
    save: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    image_tokens: float = 0.0
    pictures: float = 0.0
    padding: float = 0.0
    skipped: float = 0.0
    fallbacks: float = 0.0

    def add(self, contents: BatchContents) -> None:
        for name in ("tokens", "squares", "image_tokens", "pictures", "padding", "fallbacks"):
            setattr(self, name, getattr(self, name) + getattr(contents, name))

    def over_all(self, device: Any) -> StepTotals:
        """The sums over all processes; every process must call it in the same step."""
        names = [*StepTotals.__slots__]
        values = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64, device=device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
        return StepTotals(*values.tolist())


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """`peak`: FLOP/s of all devices together, None when unknown; `log`: train_log.jsonl on the main process, else None.

    `adapters`: only adapters are trained; `regions`: samples should have regions; `scaled`: losses are scaled (float16);
    `clock`: seconds.
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
    """Sets the epoch of the sample order, times checkpoints, writes the log, drives the Reporter, stops bad runs."""

    def __init__(self, order: SampleOrder, settings: CallbackSettings, request: StopRequest) -> None:
        self._order, self._settings, self._request = order, settings, request
        self.trainer: ChainTrainer | None = None
        self.stopped = False
        self._last_log = self._last_save = settings.clock()
        self._interval = 60 * (settings.save_minutes or 0.0)
        """Seconds between two checkpoints by the clock."""
        self._bad_norms = 0
        self._totals = StepTotals()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last_log = self._last_save = self._settings.clock()
        if self.trainer is not None:
            self.trainer.wait_in_deepspeed()
        if args.max_steps <= 0 and state.max_steps < _FEW_STEPS:
            self._settings.reporter.warn(f"only {state.max_steps} optimiser steps; a smaller global batch gives more")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # accelerate's own set_epoch does not reach the sampler of a run that is resumed with several processes.
        # `state.epoch` is a whole number at an epoch's start and a fraction where a resumed run goes on inside one.
        self._order.set_epoch(int(state.epoch or 0))
        if state.global_step >= state.max_steps:
            # Resumed after its last step. The Trainer looks for `max_steps` only after a step (transformers 5.23).
            self._order.end()
            control.should_training_stop = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer is not None:
            self.trainer.contents = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        main = state.is_world_process_zero
        timed = self._settings.save_minutes is not None
        due = main and timed and self._settings.clock() - self._last_save >= self._interval
        stop = self._request.requested or (main and (self._settings.out / STOP_FILE).exists())
        sums = StepTotals(stop=float(stop), save=float(due), skipped=float(len(self.trainer.skipped) if self.trainer else 0))
        for contents in self.trainer.contents if self.trainer else []:
            sums.add(contents)
        # One sum for everything: all processes must decide alike.
        self._totals = sums.over_all(args.device)
        if self._totals.stop and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = True
        if self._totals.save or self.stopped:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Finishes the checkpoint. The next one by the clock follows at the set interval, later where writing takes long."""
        seconds = self.trainer.finish_checkpoint() if self.trainer else 0.0
        self._last_save = self._settings.clock()
        minutes = self._settings.save_minutes
        if minutes is None:
            return
        configured, before = 60 * minutes, self._interval
        self._interval = max(configured, seconds / _SAVING_SHARE)
        if self._interval > configured and before == configured and not self.stopped:
            self._settings.reporter.warn(
                f"a checkpoint took {seconds:.3g} s to write, so the next ones follow after {self._interval / 60:.3g} minutes, "
                f"not {minutes:g}: writing may take {100 * _SAVING_SHARE:.0f} % of the time"
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
        self._guard(float(logs["loss"]), logs.get("grad_norm"), state.global_step)
        record = self._record(state, logs)
        if self._settings.log is not None:
            self._settings.log.append(record)
            if control.should_save:
                # The checkpoint is resumed from here: a power cut that it survives must not lose the lines before it.
                self._settings.log.flush()
        self._settings.reporter.progress("train", state.global_step, state.max_steps, self._detail(record))

    def _record(self, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        """A line of train_log.jsonl."""
        now = self._settings.clock()
        seconds, self._last_log = now - self._last_log, now
        totals, norm, peak = self._totals, logs.get("grad_norm"), self._settings.peak
        flops = step_flops(
            self._settings.size,
            int(totals.tokens),
            int(totals.squares),
            int(totals.image_tokens),
            int(totals.pictures),
            self._settings.adapters,
        )
        return {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 6),
            "loss": float(logs["loss"]),
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            "learning_rate": logs.get("learning_rate"),
            "seconds": round(seconds, 4),
            "tokens": int(totals.tokens),
            "padding": round(totals.padding / max(1.0, totals.tokens + totals.padding), 4),
            "mfu": round(flops / seconds / peak, 4) if peak and seconds > 0 else None,
            "skipped": int(totals.skipped),
            "fallbacks": int(totals.fallbacks),
        }

    def _detail(self, record: dict[str, Any]) -> str:
        """A log line for the progress line: replaced samples and samples without a region are always counted there."""
        speed = record["tokens"] / record["seconds"] if record["seconds"] else 0.0
        parts = [f"loss {record['loss']:.4f}", f"lr {record['learning_rate'] or 0:.2g}", f"{speed:.3g} tokens/s"]
        parts += [f"MFU {100 * record['mfu']:.0f} %"] if record["mfu"] is not None else []
        parts += [f"{record['skipped']} skipped"]
        parts += [f"{record['fallbacks']} without a region"] if self._settings.regions else []
        return ", ".join(parts)

    def _guard(self, loss: float, norm: float | None, step: int) -> None:
        """Raises CosError with the step's samples for a loss that teaches nothing and for gradients that diverged."""
        wrong = None
        if not math.isfinite(loss):
            advice = "lower the learning rate or look at the data"
            if step <= 1:
                advice = "nothing was learnt before it, so look at the start checkpoint's weights, then at the data"
            wrong = f"the loss became {loss} at step {step}; {advice}"
        elif loss == 0.0:
            wrong = f"the loss is exactly 0 at step {step}, so nothing is learnt; look at the labels"
        self._bad_norms = self._bad_norms + 1 if norm is not None and not math.isfinite(norm) else 0
        if self._bad_norms > (_BAD_NORMS_SCALED if self._settings.scaled else _BAD_NORMS):
            wrong = f"the gradient norm was not finite for {self._bad_norms} steps up to step {step}; lower the learning rate"
        if wrong:
            raise CosError(f"{wrong} (samples of this step: {listed(self._sample_ids())})")

    def _sample_ids(self) -> list[str]:
        """The samples of the step in all processes. The loss is their common one, so all processes get here together."""
        if self.trainer is None:
            return []
        ids_here = [name for contents in self.trainer.contents for name in contents.ids]
        return [name for ids in self.trainer.ranks.gather(ids_here) for name in ids]
