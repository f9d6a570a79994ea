"""The Hugging Face Trainer, told our data order and where to report. Imports transformers: only stage.py imports it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cos_core.errors import CosError
from cos_core.interfaces import Reporter
from cos_core.jsonl import DurableWriter
from cos_core.training.collate import SKIPPED
from cos_core.training.data import Skipped

_FEW_STEPS = 30


class Order(torch.utils.data.Sampler[int]):
    """A permutation of `size` samples for each epoch, a pure function of (seed, epoch).

    Yields keys that carry the epoch, as TrainData reads them. The epoch is set from the Trainer's own state when an
    epoch begins, also a resumed one.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self._size
        for index in np.random.default_rng((self._seed, self.epoch)).permutation(self._size):
            yield start + int(index)


class ChainTrainer(Trainer):
    """Trainer with our data order, which also collects what the data set had to skip.

    `skipped`: by sample id, what an interrupted run skipped before; `skipped_log`: where each new one is written at once.
    """

    def __init__(
        self, *args: Any, order: Order, skipped: Mapping[str, Skipped], skipped_log: DurableWriter, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.order = order
        self.skipped = dict(skipped)
        self._skipped_log = skipped_log

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint into the model, every one of them.

        The Trainer's own way compares the names in the file with those in memory, which differ for LLaVA, and passes over what
        it does not find: a resumed run would go on from the start weights without a word (transformers 5.23).
        """
        target = self.model if model is None else model
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype, use_safetensors=True)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            for skipped in batch.pop(SKIPPED):
                if skipped.id not in self.skipped:
                    self._skipped_log.append(skipped.to_json())
                self.skipped[skipped.id] = skipped
        return batches, items


class Report(TrainerCallback):
    """Sets the epoch of the data order, writes train_log.jsonl, drives the Reporter; stops on a loss that is no number."""

    def __init__(self, order: Order, log: DurableWriter, reporter: Reporter) -> None:
        self._order, self._log, self._reporter = order, log, reporter
        self.trainer: ChainTrainer | None = None
        self._last = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.max_steps <= 0 and state.max_steps < _FEW_STEPS:
            self._reporter.warn(f"only {state.max_steps} optimiser steps; a smaller global batch gives more")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # `state.epoch` is a whole number at an epoch's start and a fraction where a resumed run goes on inside one.
        self._order.epoch = int(state.epoch or 0)

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
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise CosError(f"the loss became {loss} at step {state.global_step}; lower the learning rate or look at the data")
        now = time.monotonic()
        skipped = len(self.trainer.skipped) if self.trainer else 0
        norm = logs.get("grad_norm")
        record = {
            "step": state.global_step,
            "epoch": round(float(state.epoch or 0), 6),
            "loss": loss,
            "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
            "learning_rate": logs.get("learning_rate"),
            "seconds": round(now - self._last, 4),
            "skipped": skipped,
        }
        self._log.append(record)
        detail = f"loss {loss:.4f}" + (f", {skipped} skipped" if skipped else "")
        self._reporter.progress("train", state.global_step, state.max_steps, detail)
        self._last = now


def summary(skipped: list[Skipped]) -> str:
    """One line: how many were skipped for which reason, the commonest first, with one offender each."""
    count = Counter(s.reason for s in skipped)
    first = {s.reason: s.id for s in reversed(skipped)}
    parts = [f"{n} x {reason} (first: {first[reason]})" for reason, n in count.most_common(3)]
    more = f" and {len(count) - 3} further reasons" if len(count) > 3 else ""
    return "; ".join(parts) + more
