"""One training run: data, Trainer, checkpoint, manifest. Reads a data file, images and a store; writes only `config.out`.

What lies in `out`: `run.json` (fingerprint and settings, written first), `train_log.jsonl` (one line a step), `skipped.jsonl`
(what was not trained on and why), `checkpoints/` (only while the run is not finished), the checkpoint, `manifest.json` (last).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core import manifest, plug
from cos_core.datasets import read_examples
from cos_core.errors import InputError, MissingError
from cos_core.interfaces import Policy, Reporter
from cos_core.jsonl import DurableWriter, Problem, read_lines
from cos_core.locks import FileLock
from cos_core.prompts import checkpoint_profile
from cos_core.store import Store
from cos_core.training.config import TrainConfig
from cos_core.training.data import Recipe, Sample, Skipped, TrainData, collect
from cos_core.types import RunManifest

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from cos_core.llava import Llava
    from cos_core.training.trainer import ChainTrainer

RUN_FILE, LOG_FILE, SKIPPED_FILE, CHECKPOINTS = "run.json", "train_log.jsonl", "skipped.jsonl", "checkpoints"


@dataclass(frozen=True, slots=True)
class _Data:
    samples: list[Sample]
    skipped: list[Skipped]
    problems: list[Skipped]


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """Fine-tunes `config.model` on Chain-of-Spot dialogues (CoS §3.3): cross-entropy on answers only.

    The loss of a step is the mean over all supervised tokens of its global batch; AdamW, gradient norm clipped at 1. A finished
    `out` of the same settings is returned as it is; an unfinished one goes on from its last whole checkpoint when
    `config.resume`. Raises InputError for data or settings that cannot be used (an `out` of other settings among them),
    MissingError without the extra `train` or the hardware asked for, LockedError when another run writes to `out`.
    """
    with ExitStack() as stack:
        # DeepSpeed's logger, which the Trainer's helpers wake wherever it is installed, speaks on stdout; that is for data.
        stack.enter_context(redirect_stdout(sys.stderr))
        arguments = _arguments(config)
        config.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(config.out / ".lock", what=config.out))
        return _run(config, arguments, reporter)


def _run(config: TrainConfig, arguments: TrainingArguments, reporter: Reporter) -> RunManifest:
    if not config.images.is_dir():
        raise InputError(f"there is no folder of images at {config.images}")
    policy = plug.load("policies", config.policy)
    settings, inputs = _settings(config, policy, arguments.world_size)
    mark = manifest.fingerprint(settings)
    if _is_finished(config.out, mark, settings):
        reporter.note(f"{config.out} is already trained with these settings; nothing to do")
        return manifest.read(config.out)
    started = manifest.started("train", config, seed=config.seed, inputs=inputs, settings_fingerprint=mark)

    data = _read(config, policy, reporter)
    llava = _load(config)
    trained = freeze(llava, config.train_projector)
    # Not before data and model are found good: a directory is not taken by a run that never began.
    claim = {"fingerprint": mark, "settings": settings}
    manifest.atomic_write(config.out / RUN_FILE, json.dumps(claim, indent=1, ensure_ascii=False) + "\n")
    trainer = _train(config, arguments, llava, _recipe(config, policy, llava), data, reporter)

    from cos_core.llava import resolve
    from cos_core.training.save import save_checkpoint, stored_dtype
    from cos_core.training.trainer import summary

    if trainer.skipped:
        reporter.warn(f"skipped while training: {summary(list(trainer.skipped.values()))}; all are in {SKIPPED_FILE}")
    save_checkpoint(llava, stored_dtype(resolve(config.model)), config.out)
    counts = {
        "ok": len(data.samples) - len(trainer.skipped),
        "failed": len(trainer.skipped) + len(data.problems),
        "skipped": len(data.skipped),
    }
    losses = [record["loss"] for _, record in read_lines(config.out / LOG_FILE)]
    results = {
        "steps": trainer.state.global_step,
        "samples": len(data.samples),
        "trained_weights": trained,
        "first_loss": losses[0],
        "last_losses_mean": math.fsum(losses[-10:]) / len(losses[-10:]),
    }
    done = started.finish(counts, results=results)
    manifest.write(config.out / manifest.FILE, done)
    shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
    return done


def _settings(config: TrainConfig, policy: Policy, devices: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What decides the result (for the fingerprint), and the inputs as the manifest names them."""
    from cos_core.llava import checkpoint_fingerprint, resolve

    where = resolve(config.model)
    inputs: dict[str, dict[str, Any]] = {
        "data": manifest.file_input(config.data),
        "model": {"path": config.model, "fingerprint": checkpoint_fingerprint(where)},
    }
    settings = {
        **config.learnt(devices),
        "policy": [policy.name, policy.source, policy.asks],
        "profile": checkpoint_profile(where, config.profile).to_json(),
        "data": inputs["data"]["sha256"],
        "model": inputs["model"]["fingerprint"],
    }
    if config.store is not None:
        with Store.read(config.store) as store:
            inputs["store"] = {"path": str(config.store), **store.info()}
        # Times, failures and bytes differ between equal stores; what the job was told to do and how far it is do not.
        settings["store"] = {key: inputs["store"][key] for key in ("fingerprint", "annotations")}
    return settings, inputs


def _is_finished(out: Path, mark: str, settings: Mapping[str, Any]) -> bool:
    """Whether `out` holds the whole result of this run. Raises InputError when it belongs to another run."""
    path = out / RUN_FILE
    if not path.is_file():
        if (out / "config.json").exists():
            raise InputError(f"{out} holds a checkpoint that cos train did not write; choose another output directory")
        return False
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        other, before = there["fingerprint"], there["settings"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a run's settings; remove {out} or choose another output directory") from None
    if other != mark:
        changed = [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]
        raise InputError(
            f"{out} belongs to a run with other settings ({', '.join(changed[:4]) or 'unknown'} differ); "
            f"choose another output directory or remove it"
        )
    return (out / manifest.FILE).is_file()


def _read(config: TrainConfig, policy: Policy, reporter: Reporter) -> _Data:
    from cos_core.training.trainer import summary

    problems: list[Problem] = []
    examples = read_examples(config.data, text_only="keep", on_problem=problems.append)
    with ExitStack() as stack:
        store = None
        if policy.source == "model":
            if config.store is None:
                raise InputError(f"the policy {policy.name!r} learns boxes: give the store that cos annotate made")
            store = stack.enter_context(Store.read(config.store))
        samples, skipped = collect(examples, policy, store, config.seed)
    if problems:
        reporter.warn(f"{len(problems)} problems in the data; the first: {problems[0]}")
    if skipped:
        reporter.warn(f"not trained on: {summary(skipped)}; all are in {SKIPPED_FILE}")
    if not samples:
        raise InputError(f"nothing in {config.data} can be trained on" + (f": {summary(skipped)}" if skipped else ""))
    return _Data(samples, skipped, [Skipped(problem.example_id or "", str(problem)) for problem in problems])


def _train(
    config: TrainConfig, arguments: TrainingArguments, llava: Llava, recipe: Recipe, data: _Data, reporter: Reporter
) -> ChainTrainer:
    from transformers.trainer_callback import PrinterCallback

    from cos_core.training.collate import Collator
    from cos_core.training.trainer import ChainTrainer, Order, Report

    order = Order(len(data.samples), config.seed)
    if not config.resume:
        shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
    last = _last_checkpoint(config.out / CHECKPOINTS)
    _trim_log(config.out / LOG_FILE, last)
    before = _skipped_before(config.out / SKIPPED_FILE) if last else {}
    (config.out / SKIPPED_FILE).unlink(missing_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_without_cache(llava.model.config))
        log = stack.enter_context(DurableWriter(config.out / LOG_FILE))
        skipped_log = stack.enter_context(DurableWriter(config.out / SKIPPED_FILE, batch=4096))
        for skipped in (*data.problems, *data.skipped, *before.values()):
            skipped_log.append(skipped.to_json())
        report = Report(order, log, reporter)
        trainer = ChainTrainer(
            model=llava.model,
            args=arguments,
            data_collator=Collator(llava.image_processor, _pad_id(llava), llava.fill),
            train_dataset=TrainData(data.samples, recipe),
            callbacks=[report],
            order=order,
            skipped=before,
            skipped_log=skipped_log,
        )
        trainer.remove_callback(PrinterCallback)
        report.trainer = trainer
        reporter.note(f"{len(data.samples)} samples" + (f", going on from step {_step(last)}" if last else ""))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        return trainer


@contextmanager
def _without_cache(config: Any) -> Iterator[None]:
    """No keys and values are kept for generation while training; the settings are the checkpoint's own again afterwards."""
    before, text = dict(config.__dict__), config.text_config.use_cache
    config.text_config.use_cache = False
    try:
        yield
    finally:
        config.text_config.use_cache = text
        # The Trainer writes `use_cache` into the outer configuration, where LLaVA has none.
        if "use_cache" not in before:
            config.__dict__.pop("use_cache", None)


def freeze(llava: Llava, train_projector: bool) -> int:
    """Leaves the language model (and the projector, if asked) to be trained; returns how many weights that is."""
    model = llava.model
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(train_projector)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _load(config: TrainConfig) -> Llava:
    from cos_core import llava

    # Float32 weights whatever the arithmetic: at 2e-5 most AdamW steps are smaller than bfloat16 can add.
    return llava.load(config.model, profile=config.profile, device="cpu", dtype="float32")


def _recipe(config: TrainConfig, policy: Policy, llava: Llava) -> Recipe:
    return Recipe(
        policy=policy,
        profile=llava.profile,
        tokenizer=llava.tokenizer,
        image_token_id=llava.image_token_id,
        image_tokens=llava.image_tokens,
        fill=llava.fill,
        images=config.images,
        seed=config.seed,
        max_length=config.max_length,
        extra_turns=config.extra_turns,
    )


def _pad_id(llava: Llava) -> int:
    # Padding is masked, so any id but the image's will do for a tokenizer that has none.
    pad = llava.tokenizer.pad_token_id
    return int(pad if pad is not None else llava.tokenizer.eos_token_id or 0)


def _arguments(config: TrainConfig) -> TrainingArguments:
    """The Trainer's settings, made before the model, as the Trainer wants. Raises MissingError without the packages or GPU."""
    try:
        import accelerate  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise MissingError(f"training needs the extra 'train': pip install 'cos-toolkit[train]' ({error})") from None
    if config.deepspeed is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MissingError("this version trains in one process; run it without DeepSpeed and without torchrun")
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise MissingError("device 'cuda' was asked for, but torch sees no CUDA GPU on this machine")
    gpu = cuda and config.device != "cpu"
    if not gpu:
        # Otherwise DeepSpeed looks for an accelerator by itself, and warns that there is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    recompute = gpu if config.gradient_checkpointing is None else config.gradient_checkpointing
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    arguments = transformers.TrainingArguments(
        output_dir=str(config.out / CHECKPOINTS),
        seed=config.seed,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation(devices=1),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=not gpu,
        bf16=config.dtype == "bfloat16" or (config.dtype == "auto" and gpu),
        activation_checkpointing=recompute,
        activation_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
        dataloader_num_workers=(4 if gpu else 0) if config.workers is None else config.workers,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=1,
    )
    if arguments.n_gpu > 1:
        # Several GPUs are work for several processes, never for the Trainer's DataParallel.
        arguments._n_gpu = 1
    return arguments


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the Trainer writes `trainer_state.json` when the rest is there."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _skipped_before(path: Path) -> dict[str, Skipped]:
    """What an interrupted run had to skip while it trained, by sample id."""
    if not path.is_file():
        return {}
    records = [record for _, record in read_lines(path, lambda _: None) if record.get("training")]
    return {str(record["id"]): Skipped(str(record["id"]), str(record["reason"]), training=True) for record in records}


def _trim_log(path: Path, checkpoint: Path | None) -> None:
    """Drops lines of steps that will be done again, so that the log holds each step once."""
    if not path.is_file():
        return
    upto = _step(checkpoint) if checkpoint else 0
    kept = [record for _, record in read_lines(path, lambda _: None) if record.get("step", 0) <= upto]
    manifest.atomic_write(path, "".join(json.dumps(record) + "\n" for record in kept))
