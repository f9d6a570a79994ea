"""One training run: data, check, Trainer, checkpoint, manifest. Reads data, images and regions; writes only `config.out`.

What lies in `out`: see folder.py. Under a launcher every process runs this; only the first writes and speaks.
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
from cos_core.files import images, manifest, picture_files, plug
from cos_core.files.jsonl import DurableWriter, read_lines
from cos_core.files.locks import FileLock
from cos_core.interfaces import Policy, Reporter, SilentReporter
from cos_core.training import data_check as doctor
from cos_core.training import engine, folder, loading, parts, resume_points
from cos_core.training.album import regions_as_tokens
from cos_core.training.config import TrainConfig
from cos_core.training.data import TrainData
from cos_core.training.engine import World
from cos_core.training.folder import CHECKPOINTS, LOG_FILE, SKIPPED_FILE, STOP_FILE
from cos_core.training.peers import Peers
from cos_core.training.reasons import Skipped, SkipReasons
from cos_core.training.table import Data
from cos_core.types import RunManifest

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from cos_core.models.llava import Llava
    from cos_core.training.trainer import ChainTrainer
    from cos_core.training.watch import TrainingCallback


@dataclass(frozen=True, slots=True)
class Start:
    """What training begins with: the model, how it turns samples into tokens, the checkpoint to go on from, the processes."""

    llava: Llava
    light: parts.CheckpointMetadata
    last: Path | None
    peers: Peers


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """Fine-tunes `config.model` on Chain-of-Spot dialogues (CoS §3.3): cross-entropy on answers only.

    The loss of a step is the mean over all supervised tokens of its global batch; AdamW, gradient norm clipped at 1. A finished
    `out` of the same settings is returned as it is; an unfinished one goes on from its last whole checkpoint when
    `config.resume`. SIGTERM and SIGINT leave a whole checkpoint and raise KeyboardInterrupt. Raises
    InputError for data or settings that cannot be used (an `out` of other settings among them), MissingError without the extra
    `train` or the hardware asked for, LockedError when another run writes to `out`, CosError when a guard stops the run.
    """
    with ExitStack() as stack:
        world, policy = stack.enter_context(begun(config))
        config = replace(config, learning_rate=config.rate)
        peers = Peers.here(world.rank, world.size)

        taken: list[FileLock] = []

        def take() -> None:
            config.out.mkdir(parents=True, exist_ok=True)
            taken.append(stack.enter_context(FileLock(config.out / ".lock", what=config.out)))

        try:
            peers.first(take)
            trained = _run(config, policy, (world, peers), reporter if world.main else SilentReporter(), stack)
            for lock in taken:
                lock.check_place()
            return trained
        except BaseException as error:
            cause = peers.cause() if isinstance(error, RuntimeError) else None
            peers.failed(error)
            if cause is not None:
                raise cause from None
            raise


@contextmanager
def begun(config: TrainConfig) -> Iterator[tuple[World, Policy]]:
    """This process among those of the run, and the policy that trains; inside, what libraries print goes to stderr.

    Raises InputError or MissingError as `run` does.
    """
    # DeepSpeed's logger, which the Trainer's helpers wake wherever it is installed, speaks on stdout; that is for data.
    with redirect_stdout(sys.stderr):
        world = World.here()
        engine.require(config)
        picture_files.check_folder(config.images)
        yield world, plug.load("policies", config.rule)


def _run(config: TrainConfig, policy: Policy, here: tuple[World, Peers], reporter: Reporter, stack: ExitStack) -> RunManifest:
    world, peers = here
    settings, inputs = parts.settings(config, policy, world.size)
    mark = manifest.fingerprint(settings)
    if folder.is_finished(config.out, mark, settings):
        if world.main:
            # Killed between the manifest and this, a run leaves them; they are large.
            shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
        reporter.note(f"{config.out} is already trained with these settings; nothing to do")
        return manifest.read(config.out)
    started = manifest.started("train", config, seed=config.seed, inputs=inputs, settings_fingerprint=mark)
    data = stack.enter_context(read(config, policy, reporter))
    made = parts.light(config, policy)
    if config.check != "off":
        # Before the process group, whose collectives would not wait for as long as a whole data set may take.
        peers.first(lambda: _checked(config, data, made, reporter))
    arguments = engine.arguments(config, world)
    if engine.arithmetic(config) == "float16":
        reporter.warn("this GPU has no bfloat16: computing in float16, with scaled losses")
    last = folder.last_checkpoint(config, world.size)
    if world.main:
        reporter.note(f"loading {config.model} ...")
    with loading.advice(config, world.size, "the model was loaded"):
        llava = loading.load(config, arguments.device, last)
    if world.main:
        # Not before data and model are found good: a directory is not taken by a run that never began.
        folder.claim(config.out, mark, settings)
    trainer, watch = train(config, arguments, Start(llava, made, last, peers), data, reporter)
    if watch.stopped:
        raise KeyboardInterrupt
    return _finish(config, started, llava, trainer, data, reporter)


def _checked(config: TrainConfig, data: Data, made: parts.CheckpointMetadata, reporter: Reporter) -> None:
    parts.check(config, data, made.recipe, reporter)


def _finish(
    config: TrainConfig, started: Any, llava: Llava, trainer: ChainTrainer, data: Data, reporter: Reporter
) -> RunManifest:
    """The checkpoint and its manifest, written by the main process; the others return an equal manifest."""
    from cos_core.training.save import gathered, save_checkpoint

    skipped = _all_skipped(trainer)
    weights = gathered(trainer, config)
    if skipped:
        reporter.warn(f"skipped while training: {SkipReasons.of(skipped.values())}; all are in {SKIPPED_FILE}")
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
    if len(data.samples) < data.samples.total:
        results["partial"] = {"limit": config.limit, "samples_in_data": data.samples.total}
    done: RunManifest = started.finish(counts, results=results)

    def write() -> None:
        folder.write_skipped(config.out, data, skipped)
        for note in save_checkpoint(llava, weights or {}, config, _annotator(config, started, results)):
            reporter.warn(note)
        manifest.write(config.out / manifest.FILE, done)
        shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)

    trainer.peers.first(write)
    return done


def _annotator(config: TrainConfig, started: Any, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `cos annotate` must know of an annotator that was trained here, and keeps beside the regions it finds."""
    if config.annotator is None:
        return None
    album = parts.album(config)
    return {
        "backbone": config.annotator,
        "detector": album and plug.described(album.detector),
        "region_tokens": album and album.tokens,
        "parent": started.inputs["model"],
        "data": started.inputs["data"],
        "steps": results["steps"],
        "samples": results["samples"],
        "settings": started.fingerprint,
    }


def _numel(weight: Any) -> int:
    # ZeRO-3 leaves each process an empty stump and the true size beside it.
    return int(getattr(weight, "ds_numel", weight.numel()))


def _all_skipped(trainer: ChainTrainer) -> dict[str, Skipped]:
    """What any process had to skip, by id."""
    if trainer.args.world_size == 1:
        return trainer.skipped
    import torch

    every: list[dict[str, Skipped]] = [{} for _ in range(trainer.args.world_size)]
    torch.distributed.all_gather_object(every, trainer.skipped)
    return {name: skipped for found in every for name, skipped in found.items()}


@contextmanager
def read(config: TrainConfig, policy: Policy, reporter: Reporter) -> Iterator[Data]:
    """The samples, inside the block, with a warning about what is left out. Raises InputError when nothing is left."""
    with parts.read(config, policy) as data:
        # The check names both, as faults.
        checked = config.check != "off"
        if len(data.problems) and not checked:
            reporter.warn(f"{len(data.problems)} problems in the data; the first: {next(data.named_problems())}")
        if len(data.skipped):
            reporter.warn(f"not trained on: {data.skipped.reasons}; all are in {SKIPPED_FILE}")
        if len(data.lacking) and not (checked and doctor.too_few(data, config.max_no_region)):
            treated = "trained on the whole picture" if config.on_no_region == "full" else "left out"
            named = f"{len(data.lacking)} of {data.asked} questions about pictures have no region and are {treated}"
            reporter.warn(f"{named}: {data.lacking.reasons}")
        if not len(data.samples):
            why = f": {data.skipped.reasons}" if len(data.skipped) else ""
            raise InputError(f"nothing in {spoken(config.data)} can be trained on{why}")
        yield data


def train(
    config: TrainConfig, arguments: TrainingArguments, start: Start, data: Data, reporter: Reporter
) -> tuple[ChainTrainer, TrainingCallback]:
    """Trains to the end, or to where a signal stopped it, from the last whole checkpoint on.

    Raises InputError with what to change when memory runs out.
    """
    from transformers.trainer_callback import PrinterCallback

    from cos_core.training.order import Order
    from cos_core.training.trainer import ChainTrainer
    from cos_core.training.watch import StopRequest, TrainingCallback

    llava, made, last, peers = start.llava, start.light, start.last, start.peers
    images.reuse_memory()
    main, rank = arguments.process_index == 0, arguments.process_index
    before = folder.skipped_before(config.out) if last and main else {}
    samples = TrainData(data.samples, made.recipe)
    order = Order(len(samples), config.seed, config.cut(arguments.world_size), samples.length, config.group_by_length)
    with ExitStack() as stack:
        stack.enter_context(_without_cache(llava.model.config))
        stack.enter_context(regions_as_tokens(llava, made.recipe.album))
        peers.first(lambda: folder.tidy(config.out, last))
        log = stack.enter_context(DurableWriter(config.out / LOG_FILE)) if main else None
        name = SKIPPED_FILE if main else f"skipped-{rank}.jsonl"
        skipped_log = stack.enter_context(DurableWriter(config.out / name, batch=4096))
        for skipped in folder.left_out(data, before.values()) if main else ():
            skipped_log.append(skipped.to_json())
        request = stack.enter_context(StopRequest().listening(alone=arguments.world_size == 1))
        watch = TrainingCallback(order, _station(config, arguments, made, log, reporter), request)
        trainer = ChainTrainer(
            model=llava.model,
            args=arguments,
            data_collator=_collator(config, arguments, llava, data),
            train_dataset=samples,
            callbacks=[watch, *engine.reporters(config, main)],
            order=order,
            skipped=before,
            skipped_log=skipped_log,
            peers=peers,
        )
        trainer.remove_callback(PrinterCallback)
        watch.trainer = trainer
        going_on = f", going on from step {resume_points.step_of(last)}" if last else ""
        reporter.note(f"{len(samples)} samples, {arguments.world_size} process(es), {config.rate_said}{going_on}")
        with loading.advice(config, arguments.world_size, "training"):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if main:
            (config.out / STOP_FILE).unlink(missing_ok=True)
        return trainer, watch


def _station(
    config: TrainConfig,
    arguments: TrainingArguments,
    made: parts.CheckpointMetadata,
    log: DurableWriter | None,
    reporter: Reporter,
) -> Any:
    import torch

    from cos_core.training.flops import peak_flops
    from cos_core.training.watch import WatchSettings

    peak = peak_flops(torch.cuda.get_device_name(0)) if engine.on_gpu(config) else None
    return WatchSettings(
        out=config.out,
        reporter=reporter,
        log=log,
        size=made.size,
        peak=peak * arguments.world_size if peak else None,
        save_minutes=config.save_minutes,
        adapters=config.lora is not None,
        regions=made.recipe.policy.source == "model",
        scaled=engine.arithmetic(config) == "float16",
    )


def _collator(config: TrainConfig, arguments: TrainingArguments, llava: Llava, data: Data) -> Any:
    from cos_core.training.collate import Collator

    # Where processes run the tower or a trained projector together, one with text alone may not leave it out.
    together = arguments.world_size > 1 and (engine.stage_of(engine.deepspeed_settings(config)) == 3 or config.train_projector)
    stand_in = (llava.image_token_id, llava.image_tokens) if together and data.mixed else None
    return Collator(llava.image_processor, _pad_id(llava), llava.fill, stand_in)


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


def _pad_id(llava: Llava) -> int:
    # Padding is masked, so any id but the image's will do for a tokenizer that has none.
    pad = llava.tokenizer.pad_token_id
    return int(pad if pad is not None else llava.tokenizer.eos_token_id or 0)
