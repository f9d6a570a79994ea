"""The Hugging Face Trainer, told our data order and what to watch. Imports transformers: only stage.py imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer

from cos_core.errors import CosError
from cos_core.files import folders
from cos_core.files.jsonl import DurableWriter
from cos_core.training import resume_points
from cos_core.training.collate import ABOUT, Contents
from cos_core.training.order import Order
from cos_core.training.peers import Peers
from cos_core.training.reasons import Skipped

_NAMED = 8


class ChainTrainer(Trainer):
    """Trainer with our data order, checkpoints that are whole or not there, and an account of every step's samples.

    `skipped`: by sample id, what an interrupted run skipped before; `skipped_log`: where each new one is written at once.
    `contents`: what the batches of the step at hand hold. `save_seconds`: what the last checkpoint took. `peers`: the processes
    of the run, by which all waiting for a disk is done: a collective of the process group would end it by its time-out.
    """

    def __init__(
        self,
        *args: Any,
        order: Order,
        skipped: Mapping[str, Skipped],
        skipped_log: DurableWriter,
        peers: Peers,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.order, self.peers = order, peers
        self.skipped = dict(skipped)
        self.contents: list[Contents] = []
        self.save_seconds = 0.0
        self._skipped_log = skipped_log

    @property
    def cut_up(self) -> bool:
        """Whether each process holds a part of the weights only (ZeRO-3), so that all must help to gather them."""
        return bool(self.is_deepspeed_enabled and self.deepspeed.zero_optimization_partition_weights())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Adapters of a checkpoint into the model; whole weights are there already.

        They were read from the checkpoint when the model was loaded (see loading.py). The Trainer's own way would need a second
        copy, compares the names in the file with those in memory, which differ for LLaVA, and passes over what it does not
        find: a resumed run would go on from the start weights without a word (transformers 5.23).
        """
        if hasattr(self.model if model is None else model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """An epoch, but nothing of one for a run that was interrupted after its last step.

        The Trainer looks whether it is done only after a step: with `max_steps` inside an epoch it would take one too many
        (transformers 5.23).
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with folders.writing(folder, alone=self.args.world_size == 1, then=resume_points.THEN):
            super()._save_checkpoint(model, trial)
            # Every process writes its part and sees it onto the disk; the list of all parts is written when the last is there.
            files = self.peers.gather(resume_points.flush(folder, self.args.process_index, self.args.world_size))
            if self.is_world_process_zero():
                resume_points.mark_whole(folder, files)
        if self.is_world_process_zero():
            resume_points.prune(folder.parent, keep=folder)
        self.peers.wait()
        self.save_seconds = time.monotonic() - began

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model of a checkpoint, written by the main process; only where it must be gathered do the others take part.

        The Trainer has each of them copy all weights into host memory first (transformers 5.23, ZeRO-1 and -2).
        """
        if self.is_world_process_zero() or self.cut_up:
            super().save_model(output_dir, _internal_call)
        self.peers.wait()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._patient_deepspeed():
            super()._save_optimizer_and_scheduler(output_dir)

    @contextmanager
    def _patient_deepspeed(self) -> Iterator[None]:
        """Has all wait here, not in a collective, before DeepSpeed does what needs them all when each has written its part.

        That is the epilogue of ZeRO-3's optimiser, which gathers small weights, and what follows the writer's `commit`, a
        barrier; every process calls both (deepspeed 0.19, `save_checkpoint`).
        """
        if not self.is_deepspeed_enabled:
            yield
            return
        steps = [(self.deepspeed.checkpoint_engine, "commit"), (self.deepspeed.optimizer, "checkpoint_event_epilogue")]
        steps = [(owner, name) for owner, name in steps if hasattr(owner, name)]
        for owner, name in steps:
            setattr(owner, name, self._after_all(getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name in steps:
                delattr(owner, name)

    def _after_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def waited(*args: Any, **options: Any) -> Any:
            self.peers.wait()
            return step(*args, **options)

        return waited

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        try:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        except CosError as error:
            raise type(error)(_sentence(error)) from error
        self.contents = [batch.pop(ABOUT) for batch in batches]
        for contents in self.contents:
            for skipped in contents.skipped:
                if skipped.id not in self.skipped:
                    self._skipped_log.append(skipped.to_json())
                self.skipped[skipped.id] = skipped
        unlearnt = [name for contents in self.contents for name in contents.unlearnt]
        if unlearnt:
            raise CosError(f"nothing of these samples would be learnt, their labels are all masked: {named(unlearnt)}")
        return batches, items


def _sentence(error: CosError) -> str:
    """The words of an error, without the traceback that torch puts before those of a data loading process."""
    return str(error).rpartition(f".{type(error).__name__}: ")[2].strip()


def named(ids: list[str]) -> str:
    """Some ids for a sentence: the first ones, and how many more."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
