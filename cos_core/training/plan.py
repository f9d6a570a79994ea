"""What is found out without training: the data check's report and the bill (`--check-only`, `--dry-run`)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cos_core.files import manifest
from cos_core.files.jsonl import read_lines
from cos_core.interfaces import Policy, Reporter, SilentReporter
from cos_core.training import engine, loading, parts, stage
from cos_core.training.config import TrainConfig
from cos_core.training.data import TrainData
from cos_core.training.engine import World
from cos_core.training.folder import LOG_FILE
from cos_core.training.peers import Peers
from cos_core.training.table import Data
from cos_core.types import RunManifest

_PROBE_STEPS = 6


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """The data check's report and, for a dry run, the bill; no model is loaded, unless a GPU is there to be probed.

    Raises InputError and MissingError as stage.run does.
    """
    with stage.begun(config) as (world, policy):
        return _plan(config, policy, world, reporter)


def _plan(config: TrainConfig, policy: Policy, world: World, reporter: Reporter) -> RunManifest:
    started = manifest.started("train", config, seed=config.seed, inputs={"data": manifest.files_input(config.data)})
    results: dict[str, Any] = {}
    with stage.read(config, policy, reporter) as data:
        made = parts.light(config, policy)
        if config.check != "off":
            report = parts.check(config, data, made.recipe, reporter)
            findings = report.findings
            results["check"] = {"checked": report.checked, "faults": findings.faults, "findings": len(findings)}
        if config.dry_run:
            results["bill"] = _bill(config, made, data, world, reporter)
    counts = {"ok": len(data.samples), "failed": len(data.problems), "skipped": len(data.skipped)}
    return started.finish(counts, results=results)


def _bill(config: TrainConfig, made: parts.CheckpointMetadata, data: Data, world: World, reporter: Reporter) -> dict[str, Any]:
    import torch

    from cos_core.training import bill
    from cos_core.training.order import Order

    gpu = engine.on_gpu(config)
    devices = config.processes or world.size
    zero = engine.deepspeed_settings(config)
    machine = bill.Machine(
        devices=devices,
        device=torch.cuda.get_device_name(0) if gpu else None,
        zero=engine.stage_of(zero),
        offload="offload_optimizer" in (zero or {}).get("zero_optimization", {}),
        half=config.dtype != "float32",
        recompute=config.gradient_checkpointing is not False,
    )
    samples = TrainData(data.samples, made.recipe)
    order = Order(len(samples), config.seed, config.cut(devices), samples.length, config.group_by_length)
    # Several devices wait for one another, which one alone cannot show.
    seconds = _probe(config, made, data, reporter) if gpu and devices == 1 else None
    result = bill.make(config, made.size, bill.load_of(samples, order, config.batch_size), machine, seconds)
    for line in result.lines():
        reporter.note(line)
    return result.to_json()


def _probe(config: TrainConfig, made: parts.CheckpointMetadata, data: Data, reporter: Reporter) -> float:
    """Seconds a step, from a few real ones in a folder that is thrown away; the first two warm up and do not count."""
    with tempfile.TemporaryDirectory(prefix="cos-probe-") as folder:
        short = replace(config, out=Path(folder), dry_run=False, check="off", max_steps=_PROBE_STEPS, report_to="none")
        reporter.note(f"probing {_PROBE_STEPS} real steps")
        arguments = engine.arguments(short, World.here())
        with loading.advice(short, 1, "the model was loaded"):
            llava = loading.load(short, arguments.device)
        stage.train(short, arguments, stage.Start(llava, made, None, Peers.here(0, 1)), data, SilentReporter())
        seconds = [record["seconds"] for _, record in read_lines(Path(folder) / LOG_FILE)][2:]
    return float(sum(seconds) / len(seconds))
