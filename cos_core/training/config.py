"""The settings of one training run. The defaults are the paper's protocol (CoS §4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cos_core.data.datasets import Files
from cos_core.errors import InputError
from cos_core.system import bounds

if TYPE_CHECKING:
    from cos_core.training.order import BatchSizes

# Settings that do not change what is learnt: where things lie and how the work is cut up. A detector counts as it is built.
_NOT_IN_FINGERPRINT = (
    "data", "images", "follow_links", "model", "out", "store", "batch_size", "device", "save_every", "save_minutes", "resume",
    "workers", "deepspeed", "gradient_checkpointing", "check", "check_only", "max_faults", "dry_run", "mfu", "liger",
    "report_to", "processes", "max_no_region", "detector", "detector_options",
)  # fmt: skip
_LORA_ALPHA = 2
_RATE, _ADAPTERS_RATE = 2e-5, 2e-4
"""Peak learning rates: the paper's (CoS §4.1) for whole weights, that of LLaVA's own LoRA recipe for adapters."""
_COUNTS = {
    "epochs": bounds.BATCH,
    "batch_size": bounds.BATCH,
    "max_length": bounds.BATCH,
    "global_batch": bounds.BATCH,
    "max_steps": bounds.COUNT,
    "save_every": bounds.COUNT,
    "lora": bounds.RANK,
    "processes": bounds.PROCESSES,
    "region_tokens": bounds.REGION_SIDE,
}
"""Whole numbers from 1, each with its largest value."""
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "check": ("sample", "full", "off"),
    "crop_of": ("text", "region"),
    "max_length_counts": ("positions", "text"),
    "on_no_region": ("full", "skip"),
    "annotator": (None, "regions", "patches"),
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run. Raises InputError for values that cannot be meant.

    data, images         samples (see datasets.py; several files are one data set) and the folder that their image paths
                         start from
    follow_links         links in that folder may lead out of it
    model, out           start checkpoint (directory, hub id or `miniature`); directory of the finished one
    store                annotations of `cos annotate`, or the released region file (.json); needed by policies whose box the
                         model writes
    profile              wording and box text (see templates/prompts); None: the checkpoint's own, else "paper"
    policy               how the region is chosen, a row of CoS Table 3a (see policies/)
    learning_rate        peak, per AdamW step, reached after `warmup_ratio` of all steps, then cosine to 0; None: 2e-5, or 2e-4
                         for adapters (see `rate`)
    batch_size           samples that one device holds at once
    global_batch         samples per optimiser step over all devices, by accumulation; None: batch_size x devices
    max_length           tokens of one sample
    max_length_counts    what max_length counts: "positions", each picture with all of its own, or "text", each picture as one
                         token, as the released code cuts (2048 are 3198 positions with two pictures of 576)
    max_steps            optimiser steps; overrides `epochs`
    extra_turns          the image's other questions follow, supervised, as the released code trains (upstream §1.5)
    train_projector      the projector is trained too, as the released code does; the paper freezes it
    on_no_region         a question for which no region was found: trained on the "full" picture and counted, or "skip"
    max_no_region        share of the questions about pictures that may be without a region before the check calls it a fault
    annotator            fine-tune the annotator instead, on plain questions and answers as this backbone shows them to it:
                         "regions" (the regions of a detector, a few tokens each) or "patches" (the picture); takes no store
    detector, detector_options, region_tokens   of the annotator "regions", as its backbone takes them
    dtype                arithmetic: auto is bfloat16 on a GPU (float16 on one without), float32 on a CPU; what is trained is
                         kept in float32 whatever it is
    workers              data loading processes; None is 0 on a CPU, 4 on a GPU
    save_every           optimiser steps between checkpoints to resume from; None leaves it to the time
    save_minutes         minutes between checkpoints at least, more where writing one takes long; None leaves it to the steps
    resume               go on from the last whole checkpoint of an interrupted run in `out`
    deepspeed            zero2, zero3, zero3_offload (see templates/deepspeed), or a DeepSpeed JSON file for the Trainer
    gradient_checkpointing   recompute activations to save memory; None: on a GPU only
    group_by_length      global batches of samples of like length: less padding, but batches are no longer drawn at random
    crop_of              the crop that training shows: of the box as its "text" says, as inference will cut it, or of the
                         annotated "region" itself, as the released code trains
    lora, qlora          rank of low-rank adapters on the language model (None: all weights); over 4-bit weights
    liger                Liger's fused kernels (GPU, package liger-kernel)
    report_to            where the Trainer reports: none, tensorboard, wandb
    check, check_only    the data doctor before training: on a sample, in full, or off; stop after it
    max_faults           faulty samples that the check lets pass; they are left out
    processes            how many a launcher will start, which the bill is made out for; None: as many as there are
    dry_run, mfu         print the bill and stop; share of a GPU's peak assumed where no GPU can be probed
    """

    data: Files
    images: Path
    model: str
    out: Path
    store: Path | None = None
    profile: str | None = None
    policy: str = "from_single_question"
    epochs: int = 1
    learning_rate: float | None = None
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    batch_size: int = 16
    global_batch: int | None = 1024
    max_length: int = 2048
    max_length_counts: Literal["positions", "text"] = "positions"
    max_steps: int | None = None
    extra_turns: bool = False
    train_projector: bool = False
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int | None = None
    save_every: int | None = None
    save_minutes: float | None = 30.0
    resume: bool = True
    deepspeed: str | None = None
    gradient_checkpointing: bool | None = None
    group_by_length: bool = False
    crop_of: Literal["text", "region"] = "text"
    on_no_region: Literal["full", "skip"] = "full"
    max_no_region: float = 0.1
    annotator: Literal["regions", "patches"] | None = None
    detector: str | None = None
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    region_tokens: int = 1
    lora: int | None = None
    qlora: bool = False
    liger: bool = False
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    check: Literal["sample", "full", "off"] = "sample"
    check_only: bool = False
    max_faults: int = 0
    processes: int | None = None
    dry_run: bool = False
    mfu: float = 0.4
    follow_links: bool = False

    def __post_init__(self) -> None:
        for name, high in _COUNTS.items():
            bounds.check(name, getattr(self, name), 1, high)
        bounds.check("workers", self.workers, 0, bounds.PROCESSES)
        bounds.check("max_faults", self.max_faults, 0, bounds.COUNT)
        bounds.check("weight_decay", self.weight_decay, 0, 10)
        bounds.check("learning_rate", self.learning_rate, 0, 10)
        bounds.check("save_minutes", self.save_minutes, 0, bounds.BATCH)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {' or '.join(map(str, choices))}, got {getattr(self, name)!r}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is a share of all steps in [0, 1), got {self.warmup_ratio}")
        if self.save_minutes is not None and self.save_minutes <= 0:
            raise InputError(f"save_minutes must be positive, got {self.save_minutes}")
        if self.qlora and self.lora is None:
            raise InputError("qlora needs the rank of its adapters: give lora, too")
        if not 0 <= self.max_no_region <= 1:
            raise InputError(f"max_no_region is a share in [0, 1], got {self.max_no_region}")
        self._check_annotator()
        if not 0 < self.mfu <= 1:
            raise InputError(f"mfu is a share of the peak in (0, 1], got {self.mfu}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must lie in [0, 2**32), got {self.seed}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"cannot train in dtype {self.dtype!r}; use auto, float32 or bfloat16")
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
        """The peak learning rate, resolved: the one given, else what suits whole weights or adapters."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATE if self.lora is None else _ADAPTERS_RATE

    @property
    def rate_said(self) -> str:
        """The peak learning rate for a person, who may not know that adapters have one of their own."""
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
        from cos_core.training.order import BatchSizes

        together = self.batch_size * devices
        return BatchSizes(self.batch_size, together, together * self.accumulation(devices))

    def to_json(self) -> dict[str, Any]:
        """Every setting, paths as text, the learning rate as it comes out."""
        settings = {key: _plain(value) for key, value in asdict(self).items()}
        return {**settings, "learning_rate": self.rate}

    def learnt(self, devices: int) -> dict[str, Any]:
        """The settings that decide what is learnt, for the run's fingerprint; `global_batch` as it comes out."""
        kept = {key: value for key, value in self.to_json().items() if key not in _NOT_IN_FINGERPRINT}
        if kept["max_length_counts"] == "positions":
            # Runs that were begun before there was a choice go on.
            del kept["max_length_counts"]
        return {**kept, "global_batch": self.batch_size * devices * self.accumulation(devices)}


def _plain(value: Any) -> Any:
    """Paths as text."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
