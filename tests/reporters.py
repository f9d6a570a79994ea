"""A reporter that keeps what a stage says."""

from __future__ import annotations

from cos_core.interfaces import SilentReporter


class Told(SilentReporter):
    """`lines` are notes and warnings in their order; `steps` the (done, total) of each progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.steps: list[tuple[int, int | None]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self.lines.append(text)

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        self.steps.append((done, total))
