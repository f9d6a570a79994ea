"""The Hugging Face Trainer with our sample order, our checkpoints and an account of every step's samples.

Only public methods of the Trainer are overridden. Imports transformers, so stage.py imports it only when it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from cos_core.errors import CosError
from cos_core.files import durable
from cos_core.files.durable_writer import DurableWriter
from cos_core.training import resume_points
from cos_core.training.collate import CONTENTS, BatchContents
from cos_core.training.ranks import Ranks
from cos_core.training.sample_order import SampleOrder
from cos_core.training.skipped import Skipped

_LISTED = 8


class OneDeviceArguments(TrainingArguments):
    """Arguments of a Trainer that uses one device a process: several GPUs need several processes, never DataParallel."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class ChainTrainer(Trainer):
    """A Trainer with its sample order, checkpoints that are whole or absent, and the contents of each step's batches.

    `skipped`: samples that were replaced while training, by id, those of an interrupted run included; `skipped_log`: the file
    that gets each new one at once. `contents`: what the batches of the current step hold. `ranks`: the processes of the run.
    Waiting for a disk is done by `ranks`, because a collective of the process group would end by its time-out.
    """

    def __init__(
        self,
        *args: Any,
        order: SampleOrder,
        skipped: Mapping[str, Skipped],
        skipped_log: DurableWriter,
        ranks: Ranks,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        # Some families say that they take none; their forward hands what it is given to their loss all the same.
        self.model_accepts_loss_kwargs = True
        self.order, self.ranks = order, ranks
        self.skipped = dict(skipped)
        self.contents: list[BatchContents] = []
        self._skipped_log = skipped_log
        self._writing: tuple[Path, float] | None = None
        """The checkpoint that is being written, and when that began, in seconds."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only (ZeRO-3), so that all processes must help to gather them."""
        return bool(self.is_deepspeed_enabled and self.deepspeed.zero_optimization_partition_weights())

    def get_train_dataloader(self) -> DataLoader:
        """Batches in our order, cut over the processes by accelerate."""
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The model's own loss of a batch. Raises CosError for samples of which no token is learnt."""
        contents: BatchContents = inputs[CONTENTS]
        self.contents.append(contents)
        for skipped in contents.skipped:
            if skipped.id not in self.skipped:
                self._skipped_log.append(skipped.to_json())
            self.skipped[skipped.id] = skipped
        if contents.unlearnt:
            ids = listed(contents.unlearnt)
            raise CosError(f"nothing of these samples would be learnt, their labels are all masked: {ids}")
        batch = {key: value for key, value in inputs.items() if key != CONTENTS}
        return super().compute_loss(model, batch, *args, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model of a checkpoint from the main process; the others only help where weights must be gathered.

        The Trainer has each process copy all weights into host memory first (transformers 5.23, ZeRO-1 and -2). It calls this
        method first of all when it writes a checkpoint.
        """
        if _internal_call and output_dir is not None:
            self._writing = Path(output_dir), time.monotonic()
        if self.is_world_process_zero() or self.sharded:
            super().save_model(output_dir, _internal_call)
        self.ranks.wait()

    def finish_checkpoint(self) -> float:
        """Makes the checkpoint that the Trainer has just written count, removes older ones, and returns the seconds it took.

        Each process flushes its own files to the disk. The list of all files is written when the last process has done so.
        """
        if self._writing is None:
            return 0.0
        folder, start = self._writing
        files = self.ranks.gather(resume_points.flush(folder, self.args.process_index, self.args.world_size))
        if self.is_world_process_zero():
            resume_points.mark_whole(folder, files)
            # The new checkpoint counts from here on; what fails later must not remove it.
            self._writing = None
            resume_points.prune(folder.parent, keep=folder)
        self._writing = None
        self.ranks.wait()
        return time.monotonic() - start

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Around `train`: a full disk becomes an InputError that names the checkpoint, which is removed again."""
        try:
            with _without_worker_traceback():
                yield
        except Exception:
            if self._writing is None:
                raise
            with durable.library_folder(self._writing[0], alone=self.args.world_size == 1, then=resume_points.THEN):
                raise

    def wait_in_deepspeed(self) -> None:
        """Has all processes wait by `ranks`, not in a collective, before the steps of DeepSpeed's saving that need them all.

        These are the epilogue of ZeRO-3's optimiser, which gathers small weights, and what follows the writer's `commit`, a
        barrier. Every process calls both (deepspeed 0.19, `save_checkpoint`).
        """
        if not self.is_deepspeed_enabled:
            return
        steps = [(self.deepspeed.checkpoint_engine, "commit"), (self.deepspeed.optimizer, "checkpoint_event_epilogue")]
        for owner, name in steps:
            if hasattr(owner, name):
                setattr(owner, name, self._after_all(getattr(owner, name)))

    def _after_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def waited(*args: Any, **options: Any) -> Any:
            self.ranks.wait()
            return step(*args, **options)

        return waited


@contextmanager
def _without_worker_traceback() -> Iterator[None]:
    """A CosError of a data loading process says its message alone; torch puts the traceback of that process before it."""
    try:
        yield
    except CosError as error:
        _, mark, message = str(error).rpartition(f".{type(error).__name__}: ")
        if not mark:
            raise
        raise type(error)(message.strip()) from error


def listed(ids: list[str]) -> str:
    """Some ids for a sentence: the first ones, and how many more."""
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return ", ".join(ids[:_LISTED]) + more
