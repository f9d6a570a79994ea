"""The Hugging Face Trainer, told our data order and what to watch. Imports transformers: only stage.py imports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from cos_core import folders
from cos_core.errors import CosError
from cos_core.jsonl import DurableWriter
from cos_core.training import checkpoints
from cos_core.training.collate import ABOUT, Contents
from cos_core.training.order import Order
from cos_core.training.samples import Skipped

_NAMED = 8


class ChainTrainer(Trainer):
    """Trainer with our data order, checkpoints that are whole or not there, and an account of every step's samples.

    `skipped`: by sample id, what an interrupted run skipped before; `skipped_log`: where each new one is written at once.
    `contents`: what the batches of the step at hand hold.
    """

    def __init__(
        self, *args: Any, order: Order, skipped: Mapping[str, Skipped], skipped_log: DurableWriter, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.order = order
        self.skipped = dict(skipped)
        self.contents: list[Contents] = []
        self._skipped_log = skipped_log

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint into the model, every one of them.

        The Trainer's own way compares the names in the file with those in memory, which differ for LLaVA, and passes over what
        it does not find: a resumed run would go on from the start weights without a word (transformers 5.23).
        """
        target = self.model if model is None else model
        if hasattr(target, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype, use_safetensors=True)
        target.load_state_dict(saved.state_dict(), strict=True)

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
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with folders.writing(folder, alone=self.args.world_size == 1, then=checkpoints.THEN):
            super()._save_checkpoint(model, trial)
            # Every process writes its part; the list of all parts is written when the last one is done.
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                checkpoints.mark_whole(folder, self.args.world_size)
        if self.is_world_process_zero():
            checkpoints.prune(folder.parent, keep=folder)
        self.accelerator.wait_for_everyone()

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
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


def named(ids: list[str]) -> str:
    """Some ids for a sentence: the first ones, and how many more."""
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more


def summary(skipped: list[Skipped]) -> str:
    """One line: how many were skipped for which reason, the commonest first, with one offender each."""
    count = Counter(s.reason for s in skipped)
    first = {s.reason: s.id for s in reversed(skipped)}
    parts = [f"{n} x {reason} (first: {first[reason]})" for reason, n in count.most_common(3)]
    more = f" and {len(count) - 3} further reasons" if len(count) > 3 else ""
    return "; ".join(parts) + more
