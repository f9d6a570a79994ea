"""Where the work of a stage is done: one file each. A stage maps portions through a runner, the same way through all of them.

A stage brings a Job (interfaces.py): how a worker is made, and how its portions are divided. Results come back in the order of
the portions, and only the process of the stage writes. `_dealer` is what the runners with several workers share.
"""

from __future__ import annotations

from functools import lru_cache

from cos_core.files import plug
from cos_core.interfaces import Job, Reporter, Runner
from cos_core.runners._config import RunnerConfig


def build(config: RunnerConfig, job: Job, device: str, reporter: Reporter, model: str | None = None) -> Runner:
    """The runner that `config` names, not yet started: use it as a context manager.

    `device`: as the user wrote it; `model`: the name of the model that workers run; None for none, so that devices do not
    matter. Raises InputError for an unknown runner, MissingError when its package or a device is not there.
    """

    @lru_cache(maxsize=1)
    def named_devices() -> list[str]:
        from cos_core.models import devices

        # Several workers on "cuda" are not meant to share the first GPU.
        every = device == "cuda" and (config.workers or 1) > 1
        return devices.devices("auto" if every else device) if model else ["cpu"]

    if model:
        reporter.note(f"loading {model} ...")
    runner: Runner = plug.load(
        "runners", config.chosen(named_devices), config=config, job=job, device=device, devices=named_devices, reporter=reporter
    )
    return runner


__all__ = ["RunnerConfig", "build"]
