"""The settings of one training run. The defaults are the paper's protocol (CoS §4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cos_core import options
from cos_core.errors import InputError
from cos_core.files import deciding
from cos_core.models.budget_options import BudgetOptions
from cos_core.options import CHECKS, INPUT, MODEL, OUTPUT, REGION, REQUIRED, SPEED, TRAINING, Files, option

if TYPE_CHECKING:
    from cos_core.training.sample_order import BatchSizes

_LORA_ALPHA = 2
_RATE, _ADAPTERS_RATE = 2e-5, 2e-4
"""Peak learning rates: the paper's (CoS §4.1) for whole weights, that of LLaVA's own LoRA recipe for adapters."""


@dataclass(frozen=True, slots=True)
class TrainConfig(BudgetOptions):
    """One training run; each field says what it is. Raises InputError for values that cannot be meant.

    On the command line `policy` is --roi and `workers` --num-workers. What the help of a field leaves out:

    learning_rate        peak, per AdamW step, reached after `warmup_ratio` of all steps, then cosine to 0 (see `rate`)
    global_batch         over all devices; None: batch_size x devices
    max_length_counts    "positions": each picture with all of its own; "text": each picture as one token, as the released code
                         cuts (2048 are 3198 positions with two pictures of 576)
    limit                in questions, as `cos annotate` counts them (see samples.Rules); part of the fingerprint and of the
                         manifest
    extra_turns          supervised, as the released code trains (upstream §1.5)
    detector, region_tokens   of the annotator "regions", as its backbone takes them
    dtype                auto is bfloat16 on a GPU (float16 on one without), float32 on a CPU
    group_by_length      batches are then no longer drawn at random
    max_faults           the faulty samples are left out
    processes            how many a launcher will start, which the bill is made out for; None: as many as there are
    """

    data: Files = options.data_option()
    images: Path = options.images_option()
    model: str = options.model_option(what="Vision-language checkpoint")
    out: Path = option(
        REQUIRED, "Folder for checkpoints and the trained model.", OUTPUT, not_in_fingerprint="where the model goes"
    )
    store: Path | None = option(
        None,
        "Store that `cos annotate` wrote, or the released region file (.json).",
        INPUT,
        completes="store",
        shown_default="no regions",
    )
    profile: str | None = options.profile_option(options.ANY_FAMILY)
    policy: str = options.policy_option()
    epochs: int = option(1, "Passes over the data.", TRAINING, low=1, high=options.BATCH)
    learning_rate: float | None = option(
        None,
        "Highest learning rate; cosine decay after warm-up.",
        TRAINING,
        low=0,
        high=10,
        shown_default="2e-5; 2e-4 for adapters",
    )
    warmup_ratio: float = option(0.03, "Share of the steps that warm up.", TRAINING, low=0, high=1)
    weight_decay: float = option(0.0, "AdamW weight decay.", TRAINING, low=0, high=10)
    batch_size: int = option(
        16,
        "Samples a device sees at once.",
        TRAINING,
        low=1,
        high=options.BATCH,
        not_in_fingerprint="how a step is cut up: `global_batch` counts",
    )
    global_batch: int | None = option(
        1024, "Samples an optimiser step (the paper: 1024), by accumulation.", TRAINING, low=1, high=options.BATCH
    )
    max_length: int = option(2048, "Longest sample, in tokens.", TRAINING, low=1, high=options.BATCH)
    max_length_counts: Literal["positions", "text"] = option(
        "positions",
        "In --max-length, a picture counts all its positions, or one token, as the released code cuts.",
        TRAINING,
        before="positions",
    )
    max_steps: int | None = option(
        None, "Stop after this many steps.", TRAINING, low=1, high=options.COUNT, shown_default="epochs decide"
    )
    limit: int | None = option(
        None,
        "A trial on the first so many questions, to the end of their sample; the run is marked as partial.",
        INPUT,
        low=1,
        high=options.COUNT,
        shown_default="all",
        before=None,
    )
    extra_turns: bool = option(False, "Append the picture's other questions, as the released code does.", TRAINING)
    train_projector: bool = option(False, "Train the projector too, as the released code does.", TRAINING)
    seed: int = options.seed_option()
    dtype: Literal["auto", "float32", "bfloat16"] = options.dtype_option(
        ("float32", "bfloat16"), "Arithmetic; what is trained stays float32."
    )
    device: str = options.device_option()
    workers: int | None = option(
        None,
        "Processes that load data.",
        SPEED,
        flag="--num-workers",
        formerly=("workers",),
        low=0,
        high=options.PROCESSES,
        shown_default="0 on a CPU, 4 on a GPU",
        not_in_fingerprint="how samples are read",
    )
    save_every: int | None = option(
        None,
        "Steps between checkpoints.",
        OUTPUT,
        low=1,
        high=options.COUNT,
        shown_default="by time only",
        not_in_fingerprint="when a run is saved",
    )
    save_minutes: float | None = option(
        30.0,
        "Minutes between checkpoints; more where one takes long to write.",
        OUTPUT,
        low=0,
        high=options.BATCH,
        not_in_fingerprint="when a run is saved",
    )
    resume: bool = option(
        True, "Continue from the last whole checkpoint in --out.", OUTPUT, not_in_fingerprint="where a run begins to work"
    )
    deepspeed: str | None = option(
        None,
        "zero2, zero3, zero3_offload, or a DeepSpeed JSON file.",
        SPEED,
        shown_default="none",
        not_in_fingerprint="where weights and states are kept",
    )
    gradient_checkpointing: bool | None = option(
        None,
        "Recompute activations to save memory.",
        SPEED,
        shown_default="on a GPU only",
        not_in_fingerprint="the same activations, made again",
    )
    group_by_length: bool = option(False, "Make batches of samples of like length: less padding.", SPEED)
    crop_of: Literal["text", "region"] = option(
        "text", "Crop what the box text says, as inference will, or the annotated region, as the released code.", REGION
    )
    on_no_region: Literal["full", "skip"] = option(
        "full", "A question without a region: train it on the whole picture, and count it, or leave it out.", REGION
    )
    max_no_region: float = option(
        0.1,
        "Share of questions without a region that the check lets pass.",
        CHECKS,
        low=0,
        high=1,
        not_in_fingerprint="when the check stops a run",
    )
    annotator: Literal["regions", "patches"] | None = option(
        None,
        "Fine-tune the annotator instead: plain answers, with pictures as this backbone shows them; no --store.",
        MODEL,
        shown_default="no",
    )
    detector: str | None = options.detector_option()
    detector_options: Mapping[str, Any] = options.settings_option("detector")
    region_tokens: int = option(
        1, "Visual tokens a region, along each side (annotator 'regions').", REGION, low=1, high=options.REGION_SIDE
    )
    lora: int | None = option(
        None, "Train adapters of this rank, merged at the end.", MODEL, low=1, high=options.RANK, shown_default="all weights"
    )
    qlora: bool = option(False, "Adapters over 4-bit weights (GPU, with --lora).", MODEL)
    liger: bool = option(
        False, "Liger's fused kernels (GPU).", SPEED, not_in_fingerprint="the same arithmetic by other kernels"
    )
    report_to: Literal["none", "tensorboard", "wandb"] = option(
        "none", "Where the Trainer reports to.", OUTPUT, not_in_fingerprint="who is told of a run"
    )
    check: Literal["sample", "full", "off"] = option(
        "sample",
        "Examine the data first: some samples closely, all, or none.",
        CHECKS,
        not_in_fingerprint="what is looked at before a run",
    )
    check_only: bool = option(False, "Examine the data and stop.", CHECKS, not_in_fingerprint="nothing is learnt")
    max_faults: int = option(
        0,
        "Faulty samples to pass over instead of stopping.",
        CHECKS,
        low=0,
        high=options.COUNT,
        not_in_fingerprint="when the check stops a run",
    )
    processes: int | None = option(
        None,
        "Processes (GPUs) on this machine, by DeepSpeed's launcher.",
        SPEED,
        low=1,
        high=options.PROCESSES,
        shown_default="one",
        not_in_fingerprint="where the work is done: `global_batch` counts",
    )
    dry_run: bool = option(
        False, "Print the bill (steps, memory, disk, hours) and stop.", CHECKS, not_in_fingerprint="nothing is learnt"
    )
    mfu: float = option(
        0.4,
        "Share of a GPU's peak that the bill assumes.",
        CHECKS,
        low=0.01,
        high=1,
        not_in_fingerprint="an assumption of the bill",
    )
    price_hour: float | None = option(
        None,
        "Price of one GPU for an hour; the bill then says what the run costs.",
        CHECKS,
        low=0,
        high=options.COUNT,
        shown_default="no price",
        not_in_fingerprint="an assumption of the bill",
    )
    follow_links: bool = options.follow_links_option(not_in_fingerprint="where the pictures may be")
    columns: str | None = options.columns_option(before=None)

    def __post_init__(self) -> None:
        options.check(self)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_ratio >= 1:
            raise InputError(f"warmup_ratio is a share of all steps in [0, 1), got {self.warmup_ratio}")
        if self.save_minutes is not None and self.save_minutes <= 0:
            raise InputError(f"save_minutes must be positive, got {self.save_minutes}")
        if self.qlora and self.lora is None:
            raise InputError("qlora needs the rank of its adapters: give lora, too")
        self._check_annotator()
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"cannot train on device {self.device!r}; use auto, cpu or cuda (CUDA_VISIBLE_DEVICES chooses)")

    def _check_annotator(self) -> None:
        """An annotator learns answers alone: it has no regions, no chain, and no questions that follow."""
        if self.detector_options and self.detector is None:
            raise InputError("detector options need a detector")
        if self.annotator != "regions" and (self.detector is not None or self.region_tokens != 1):
            raise InputError("detector and region_tokens belong to the annotator 'regions'")
        if self.annotator is None:
            return
        if self.store is not None:
            raise InputError("an annotator learns from questions and answers alone: leave the store out")
        if self.extra_turns:
            raise InputError("an annotator is asked one question at a time: leave extra_turns out")
        if self.policy not in ("from_single_question", "none"):
            raise InputError(f"an annotator learns plain answers, not the policy {self.policy!r}: leave it out")

    @property
    def rule(self) -> str:
        """The policy that training follows; an annotator's dialogue has no chain."""
        return self.policy if self.annotator is None else "none"

    @property
    def rate(self) -> float:
        """The peak learning rate: `learning_rate`, else the default for whole weights or for adapters."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATE if self.lora is None else _ADAPTERS_RATE

    @property
    def rate_said(self) -> str:
        """The peak learning rate as text, with that of all weights where adapters take another default."""
        usual = f" (all weights: {_RATE:g})" if self.lora is not None and self.rate == _ADAPTERS_RATE else ""
        return f"learning rate {self.rate:g}{usual}"

    def accumulation(self, devices: int) -> int:
        """Micro-batches per optimiser step on each of `devices`. Raises InputError when `global_batch` cannot be cut so."""
        together = self.batch_size * devices
        if self.global_batch is None:
            return 1
        if self.global_batch % together:
            raise InputError(
                f"global_batch {self.global_batch} is not a multiple of batch_size {self.batch_size} x {devices} device(s); "
                f"change one of them"
            )
        return self.global_batch // together

    @property
    def lora_alpha(self) -> int:
        """The adapters' scale, twice the rank, as LLaVA's own LoRA recipe has it."""
        return _LORA_ALPHA * (self.lora or 0)

    def cut(self, devices: int) -> BatchSizes:
        """How an epoch is cut into batches, micro-steps and optimiser steps on `devices`."""
        from cos_core.training.sample_order import BatchSizes

        together = self.batch_size * devices
        return BatchSizes(self.batch_size, together, together * self.accumulation(devices))

    def learnt(self, devices: int, by_content: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """The settings that decide what is learnt, for the run's fingerprint; learning rate and global batch as they come out.

        `by_content`: what counts in place of a field (see deciding.settings).
        """
        together = self.batch_size * devices * self.accumulation(devices)
        made: dict[str, Mapping[str, Any]] = {
            "learning_rate": {"learning_rate": self.rate},
            "global_batch": {"global_batch": together},
        }
        return deciding.settings(self, {**made, **(by_content or {})})
