"""Runs without training: the data check (`--check-only`) and the cost estimate (`--dry-run`)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_core.files import manifest
from cos_core.files.jsonl import read_lines
from cos_core.interfaces import Policy, Reporter, SilentReporter
from cos_core.training import inputs, loading, planned, runtime, stage
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import TrainDataset
from cos_core.training.ranks import Ranks
from cos_core.training.run_folder import LOG_FILE
from cos_core.training.runtime import World
from cos_core.training.sample_table import SampleSet
from cos_core.types import RunManifest

_PROBE_STEPS = 6


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """The data check's report and, for a dry run, the cost estimate. A model is loaded only where a GPU can be probed.

    Raises InputError and MissingError as stage.run does.
    """
    with stage.prepared(config) as (world, policy):
        return _plan(config, policy, world, reporter)


def _plan(config: TrainConfig, policy: Policy, world: World, reporter: Reporter) -> RunManifest:
    started = manifest.started("train", config, seed=config.seed, inputs={"data": manifest.files_input(config.data)})
    results: dict[str, Any] = {}
    with stage.read(config, policy, reporter) as data:
        start = planned.checkpoint(config) if config.dry_run else inputs.start_checkpoint(config)
        model = planned.planned(config, policy, start)
        if config.check != "off" and model.texts:
            report = inputs.check(config, data, model.recipe, reporter)
            findings = report.findings
            results["check"] = {"checked": report.checked, "faults": findings.faults, "findings": len(findings)}
        elif config.check != "off":
            reporter.warn(f"the data was not checked: there is no tokenizer of {config.model} here")
        if config.dry_run:
            results["bill"] = _estimate(config, model, data, world, reporter)
    counts = {"ok": len(data.samples), "failed": len(data.problems), "skipped": len(data.skipped)}
    return started.finish(counts, results=results)


def _estimate(
    config: TrainConfig, model: planned.PlannedModel, data: SampleSet, world: World, reporter: Reporter
) -> dict[str, Any]:
    import torch

    from cos_core.training import cost_estimate, epoch_load
    from cos_core.training.sample_order import SampleOrder

    gpu = runtime.on_gpu(config)
    devices = config.processes or world.size
    zero = runtime.deepspeed_settings(config)
    machine = cost_estimate.Machine(
        devices=devices,
        device=torch.cuda.get_device_name(0) if gpu else None,
        zero=runtime.zero_stage(zero),
        offload=runtime.offloads(zero),
        half=config.dtype != "float32",
        recompute=config.gradient_checkpointing is not False,
        **({"gib": torch.cuda.get_device_properties(0).total_memory / 2**30} if gpu else {}),
    )
    samples = TrainDataset(data.samples, model.recipe)
    order = SampleOrder(len(samples), config.seed, config.cut(devices), samples.length, config.group_by_length)
    # One device alone cannot show how long several wait for one another.
    probed = gpu and devices == 1 and model.metadata is not None
    seconds = _probe(config, model.metadata, data, reporter) if probed and model.metadata else None
    load = epoch_load.epoch_load(samples, order, config.batch_size, model.counter)
    result = cost_estimate.estimate(config, model.size, load, machine, seconds, model.remarks)
    for line in result.lines():
        reporter.note(line)
    return result.to_json()


def _probe(config: TrainConfig, metadata: inputs.CheckpointMetadata, data: SampleSet, reporter: Reporter) -> float:
    """Seconds a step, measured on a few real steps in a temporary folder; the first two are warm-up and not counted."""
    with tempfile.TemporaryDirectory(prefix="cos-probe-") as folder:
        short = replace(config, out=Path(folder), dry_run=False, check="off", max_steps=_PROBE_STEPS, report_to="none")
        reporter.note(f"probing {_PROBE_STEPS} real steps")
        arguments = runtime.arguments(short, World.of_launcher())
        with loading.advice(short, 1, "the model was loaded"):
            model = loading.load(short, inputs.start_checkpoint(short), metadata.recipe.encoder, arguments.device)
        stage.train(short, arguments, stage.Start(model, metadata, None, Ranks.of_launcher(0, 1)), data, SilentReporter())
        seconds = [record["seconds"] for _, record in read_lines(Path(folder) / LOG_FILE)][2:]
    return float(sum(seconds) / len(seconds))
