"""The settings that say where the work of a stage is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cos_core.errors import InputError
from cos_core.system import bounds


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """Where the work is done.

    `runner`: "auto", or a plug-in of the kind: "local" (this process), "processes" (of this machine), "ray" (a cluster).
    "auto" is "ray" with an address, "processes" for more than one worker, else "local". `workers`: how many hold a model, None
    for one a GPU (without GPUs one, on a cluster one a node). `ray_address`: a running cluster's, or None to start one for the
    run. `ship_images`: the driver reads the picture files and sends them along, for workers that do not see their folder.
    """

    runner: str = "auto"
    workers: int | None = None
    ray_address: str | None = None
    ship_images: bool = False

    def __post_init__(self) -> None:
        bounds.check("workers", self.workers, 1, bounds.PROCESSES)
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
