"""The settings that say where the work of a stage is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cos_core import options
from cos_core.errors import InputError
from cos_core.options import SPEED, option


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """Where the work is done. "auto" is "ray" with an address, "processes" for more than one worker, else "local"."""

    runner: str = option(
        "auto",
        "Where the work is done: 'local', 'processes' of this machine, or 'ray'.",
        SPEED,
        parser=options.plugin_name,
        metavar="NAME",
        completes="runners",
        shown_default="ray with an address, processes for several workers, else local",
    )
    workers: int | None = option(
        None,
        "How many hold a model.",
        SPEED,
        low=1,
        high=options.PROCESSES,
        shown_default="one a GPU, else one; on a cluster one a node",
    )
    ray_address: str | None = option(
        None,
        "A running Ray cluster, HOST:PORT or 'auto'.",
        SPEED,
        shown_default="with --runner ray: one is started for the run",
    )
    ship_images: bool = option(False, "Send the pictures along, for workers that do not see their folder.", SPEED)

    def __post_init__(self) -> None:
        options.check(self)
        if self.ray_address is not None and self.runner not in ("auto", "ray"):
            raise InputError(f"a Ray address is for the runner 'ray', not for {self.runner!r}")
        if self.runner == "local" and (self.workers or 1) > 1:
            raise InputError(f"the runner 'local' is one worker; {self.workers} need 'processes' or 'ray'")

    def chosen(self, devices: Callable[[], Sequence[str]]) -> str:
        """The runner's name; `devices` (of this machine) are asked only when they decide."""
        if self.runner != "auto":
            return self.runner
        if self.ray_address is not None:
            return "ray"
        many = self.workers > 1 if self.workers is not None else len(devices()) > 1
        return "processes" if many else "local"
