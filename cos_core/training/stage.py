"""One training run: data, check, Trainer, checkpoint, manifest. Reads data, images and regions; writes only `config.out`.

The files in `out` are listed in run_folder.py. Under a launcher every process runs this; only the first one writes files and
reports.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.data.datasets import spoken
from cos_core.errors import InputError
from cos_core.files import durable, images, manifest, picture_files, plug
from cos_core.files.durable_writer import DurableWriter
from cos_core.files.jsonl import read_lines
from cos_core.files.locks import FileLock
from cos_core.interfaces import Policy, Reporter, SilentReporter
from cos_core.models.encoder import Encoder
from cos_core.training import data_check, inputs, loading, resume_points, run_folder, runtime
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import Recipe, TrainDataset
from cos_core.training.ranks import Ranks
from cos_core.training.region_crops import regions_as_tokens
from cos_core.training.run_folder import CHECKPOINTS, LOG_FILE, SKIPPED_FILE, STOP_FILE
from cos_core.training.runtime import World
from cos_core.training.sample_table import SampleSet
from cos_core.training.skipped import SkipCounts, Skipped
from cos_core.types import RunManifest

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from cos_core.models.loaded import LoadedModel
    from cos_core.training.callback import TrainingCallback
    from cos_core.training.trainer import ChainTrainer


@dataclass(frozen=True, slots=True)
class Start:
    """What training begins with. `last`: the checkpoint that an interrupted run is resumed from; `ranks`: the processes."""

    model: LoadedModel
    metadata: inputs.CheckpointMetadata
    last: Path | None
    ranks: Ranks


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """Fine-tunes `config.model` on Chain-of-Spot dialogues (CoS §3.3): cross-entropy on answers only.

    The loss of a step is the mean over all supervised tokens of its global batch; AdamW, gradient norm clipped at 1. A finished
    `out` of the same settings is returned as it is; an unfinished one is resumed from its last whole checkpoint when
    `config.resume`. SIGTERM and SIGINT leave a whole checkpoint and raise KeyboardInterrupt.

    Raises InputError for data or settings that cannot be used (an `out` of other settings among them), MissingError without the
    extra `train` or the hardware asked for, LockedError when another run writes to `out`, CosError when a guard stops the run.
    """
    with ExitStack() as stack:
        world, policy = stack.enter_context(prepared(config))
        config = replace(config, learning_rate=config.rate)
        ranks = Ranks.of_launcher(world.rank, world.size)

        locks: list[FileLock] = []

        def lock_out() -> None:
            stack.enter_context(durable.made_folder(config.out))
            locks.append(stack.enter_context(FileLock(config.out / ".lock", what=config.out)))

        try:
            ranks.first(lock_out)
            result = _run(config, policy, (world, ranks), reporter if world.main else SilentReporter(), stack)
            for lock in locks:
                lock.check_place()
            return result
        except BaseException as error:
            cause = ranks.cause() if isinstance(error, RuntimeError) else None
            ranks.failed(error)
            if cause is not None:
                raise cause from None
            raise


@contextmanager
def prepared(config: TrainConfig) -> Iterator[tuple[World, Policy]]:
    """The rank of this process and the policy; inside the block, what libraries print goes to stderr.

    Raises InputError or MissingError as `run` does.
    """
    # Where DeepSpeed is installed, the Trainer's helpers import it, and its logger writes to stdout, which is for data.
    with redirect_stdout(sys.stderr):
        world = World.of_launcher()
        runtime.require(config)
        picture_files.check_folder(config.images)
        yield world, plug.load("policies", config.rule)


def _run(
    config: TrainConfig, policy: Policy, processes: tuple[World, Ranks], reporter: Reporter, stack: ExitStack
) -> RunManifest:
    world, ranks = processes
    checkpoint = inputs.start_checkpoint(config)
    settings, sources = inputs.settings(config, policy, world.size, checkpoint)
    fingerprint = manifest.fingerprint(settings)
    if run_folder.is_finished(config.out, fingerprint, settings):
        if world.main:
            # A run that was killed after its manifest leaves them, and they are large.
            shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
        reporter.note(f"{config.out} is already trained with these settings; nothing to do")
        return manifest.read(config.out)
    started = manifest.started("train", config, seed=config.seed, inputs=sources, settings_fingerprint=fingerprint)
    data = stack.enter_context(read(config, policy, reporter))
    metadata = inputs.checkpoint_metadata(config, policy, checkpoint)
    for remark in inputs.remarks(checkpoint, metadata.recipe.encoder):
        reporter.note(remark)
    if config.check != "off":
        # Before the process group exists: its collectives end by a time-out, and checking a whole data set may take longer.
        ranks.first(lambda: inputs.check(config, data, metadata.recipe, reporter))
    arguments = runtime.arguments(config, world)
    if runtime.arithmetic(config) == "float16":
        reporter.warn("this GPU has no bfloat16: computing in float16, with scaled losses")
    last = run_folder.last_checkpoint(config, world.size)
    if world.main:
        reporter.note(f"loading {config.model} ...")
    with loading.advice(config, world.size, "the model was loaded"):
        model = loading.load(config, checkpoint, metadata.recipe.encoder, arguments.device, last)
    if world.main:
        # Only once data and model have been read: a run that never starts must not claim the directory.
        run_folder.claim(config.out, fingerprint, settings)
    trainer, callback = train(config, arguments, Start(model, metadata, last, ranks), data, reporter)
    if callback.stopped:
        raise KeyboardInterrupt
    return _finish(config, started, model, trainer, data, reporter)


def _finish(
    config: TrainConfig, started: Any, model: LoadedModel, trainer: ChainTrainer, data: SampleSet, reporter: Reporter
) -> RunManifest:
    """The checkpoint and its manifest, written by the main process; the others return an equal manifest."""
    from cos_core.training.save import gathered, save_checkpoint

    skipped = _all_skipped(trainer)
    weights = gathered(trainer, config)
    if skipped:
        reporter.warn(f"skipped while training: {SkipCounts.of(skipped.values())}; all are in {SKIPPED_FILE}")
    log = [record for _, record in read_lines(config.out / LOG_FILE)]
    losses = [record["loss"] for record in log]
    counts = {
        "ok": len(data.samples) - len(skipped),
        "failed": len(skipped) + len(data.problems),
        "skipped": len(data.skipped),
    }
    results = {
        "steps": trainer.state.global_step,
        "samples": len(data.samples),
        "trained_weights": sum(_numel(p) for p in trainer.model.parameters() if p.requires_grad),
        "processes": trainer.args.world_size,
        "first_loss": losses[0],
        "last_losses_mean": math.fsum(losses[-10:]) / len(losses[-10:]),
        "questions_without_region": len(data.lacking),
        "fallbacks": sum(record["fallbacks"] for record in log),
    }
    if data.partial:
        results["partial"] = {"limit": config.limit}
    finished: RunManifest = started.finish(counts, results=results)

    def write() -> None:
        run_folder.write_skipped(config.out, data, skipped)
        for note in save_checkpoint(model, weights or {}, config, _annotator(config, started, results)):
            reporter.warn(note)
        manifest.write(config.out / manifest.FILE, finished)
        shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)

    trainer.ranks.first(write)
    return finished


def _annotator(config: TrainConfig, started: Any, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a trained annotator, which `cos annotate` reads and keeps beside the regions that it finds."""
    if config.annotator is None:
        return None
    crops = inputs.region_crops(config)
    return {
        "backbone": config.annotator,
        "detector": crops and plug.described(crops.detector),
        "region_tokens": crops and crops.tokens,
        "parent": started.inputs["model"],
        "data": started.inputs["data"],
        "steps": results["steps"],
        "samples": results["samples"],
        "settings": started.fingerprint,
    }


def _numel(weight: Any) -> int:
    # Under ZeRO-3 each process holds an empty tensor with the true size beside it.
    return int(getattr(weight, "ds_numel", weight.numel()))


def _all_skipped(trainer: ChainTrainer) -> dict[str, Skipped]:
    """The samples that any process skipped while training, by id."""
    by_rank = trainer.ranks.gather([skipped.to_json() for skipped in trainer.skipped.values()])
    return {row["id"]: Skipped(**row) for rows in by_rank for row in rows}


@contextmanager
def read(config: TrainConfig, policy: Policy, reporter: Reporter) -> Iterator[SampleSet]:
    """The samples, inside the block, with a warning about what is left out. Raises InputError when nothing is left."""
    with inputs.read(config, policy) as data:
        # The data check reports both as faults.
        checked = config.check != "off"
        if len(data.problems) and not checked:
            reporter.warn(f"{len(data.problems)} problems in the data; the first: {next(data.named_problems())}")
        if len(data.skipped):
            reporter.warn(f"not trained on: {data.skipped.reasons}; all are in {SKIPPED_FILE}")
        if len(data.lacking) and not (checked and data_check.too_few(data, config.max_no_region)):
            treated = "trained on the whole picture" if config.on_no_region == "full" else "left out"
            counts = f"{len(data.lacking)} of {data.region_questions} questions about pictures have no region and are {treated}"
            reporter.warn(f"{counts}: {data.lacking.reasons}")
        if not len(data.samples):
            why = f": {data.skipped.reasons}" if len(data.skipped) else ""
            raise InputError(f"nothing in {spoken(config.data)} can be trained on{why}")
        yield data


def train(
    config: TrainConfig, arguments: TrainingArguments, start: Start, data: SampleSet, reporter: Reporter
) -> tuple[ChainTrainer, TrainingCallback]:
    """Trains to the end, or to where a signal stopped it, from the last whole checkpoint on.

    Raises InputError with what to change when memory runs out.
    """
    from transformers.trainer_callback import PrinterCallback

    from cos_core.training.callback import StopRequest, TrainingCallback
    from cos_core.training.sample_order import SampleOrder
    from cos_core.training.trainer import ChainTrainer

    model, metadata, last, ranks = start.model, start.metadata, start.last, start.ranks
    images.reuse_memory()
    main, rank = arguments.process_index == 0, arguments.process_index
    before = run_folder.skipped_before(config.out) if last and main else {}
    samples = TrainDataset(data.samples, metadata.recipe)
    order = SampleOrder(len(samples), config.seed, config.cut(arguments.world_size), samples.length, config.group_by_length)
    with ExitStack() as stack:
        stack.enter_context(_without_cache(model.model.config))
        stack.enter_context(regions_as_tokens(model, metadata.recipe.region_crops))
        ranks.first(lambda: run_folder.tidy(config.out, last))
        log = stack.enter_context(DurableWriter(config.out / LOG_FILE)) if main else None
        name = SKIPPED_FILE if main else f"skipped-{rank}.jsonl"
        skipped_log = stack.enter_context(DurableWriter(config.out / name, batch=4096))
        for skipped in run_folder.left_out(data, before.values()) if main else ():
            skipped_log.append(skipped.to_json())
        request = stack.enter_context(StopRequest().installed(alone=arguments.world_size == 1))
        callback = TrainingCallback(order, _callback_settings(config, arguments, metadata, log, reporter), request)
        trainer = ChainTrainer(
            model=model.model,
            args=arguments,
            data_collator=_collator(config, arguments, metadata.recipe, data),
            train_dataset=samples,
            callbacks=[callback, *runtime.reporters(config, main)],
            order=order,
            skipped=before,
            skipped_log=skipped_log,
            ranks=ranks,
        )
        trainer.remove_callback(PrinterCallback)
        callback.trainer = trainer
        resumed = f", going on from step {resume_points.step_of(last)}" if last else ""
        reporter.note(f"{len(samples)} samples, {arguments.world_size} process(es), {config.rate_said}{resumed}")
        with loading.advice(config, arguments.world_size, "training"), trainer.readable_errors():
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if main:
            (config.out / STOP_FILE).unlink(missing_ok=True)
        return trainer, callback


def _callback_settings(
    config: TrainConfig,
    arguments: TrainingArguments,
    metadata: inputs.CheckpointMetadata,
    log: DurableWriter | None,
    reporter: Reporter,
) -> Any:
    import torch

    from cos_core.training.callback import CallbackSettings
    from cos_core.training.flops import peak_flops

    peak = peak_flops(torch.cuda.get_device_name(0)) if runtime.on_gpu(config) else None
    return CallbackSettings(
        out=config.out,
        reporter=reporter,
        log=log,
        size=metadata.size,
        peak=peak * arguments.world_size if peak else None,
        save_minutes=config.save_minutes,
        adapters=config.lora is not None,
        regions=metadata.recipe.policy.source == "model",
        scaled=runtime.arithmetic(config) == "float16",
    )


def _collator(config: TrainConfig, arguments: TrainingArguments, recipe: Recipe, data: SampleSet) -> Any:
    from cos_core.training.collate import Collator, empty_picture

    encoder, crops = recipe.encoder, recipe.region_crops
    stand_in = None
    # Where all processes must run the tower or a trained projector, a batch of text only needs a picture, too.
    if data.mixed and arguments.world_size > 1 and (runtime.shards_weights(config) or config.train_projector):
        picture, tokens = empty_picture(encoder)
        stand_in = picture, tokens if crops is None else crops.positions
    return Collator(encoder, _pad_id(encoder), stand_in)


@contextmanager
def _without_cache(config: Any) -> Iterator[None]:
    """No keys and values are kept for generation while training; the settings are the checkpoint's own again afterwards."""
    before, text = dict(config.__dict__), config.get_text_config()
    cached, text.use_cache = text.use_cache, False
    try:
        yield
    finally:
        text.use_cache = cached
        # The Trainer writes `use_cache` into the outer configuration, where LLaVA has none.
        if "use_cache" not in before and text is not config:
            config.__dict__.pop("use_cache", None)


def _pad_id(encoder: Encoder) -> int:
    # Padding is masked, so any id but the image's will do for a tokenizer that has none.
    pad = encoder.tokenizer.pad_token_id
    return int(pad if pad is not None else encoder.tokenizer.eos_token_id or 0)
