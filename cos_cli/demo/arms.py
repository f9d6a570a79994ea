"""What the demo compares, how much work it is, and where each part of a run lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.system import worker_process


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much work: scenes to train on, optimisation steps, scenes to test on, questions on each scene."""

    train_scenes: int
    steps: int
    test_scenes: int
    batch: int = 16
    questions: int = 3
    learning_rate: float = 1e-3


FULL = DemoSize(train_scenes=3200, steps=300, test_scenes=400)
QUICK = DemoSize(train_scenes=160, steps=10, test_scenes=20)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a policy, the labels it is trained on, and the policy it answers with (its own unless said)."""

    name: str
    title: str
    policy: str
    labels: str | None = None
    weights: str | None = None
    """The arm whose trained weights are used; None: trained for this arm."""


ARMS = (
    Arm("none", "no Chain-of-Spot", "none"),
    Arm("center_crop", "centre crop", "center_crop"),
    Arm("from_image", "from image", "from_image", labels="from_image"),
    Arm("from_questions", "from questions", "from_questions", labels="from_questions"),
    Arm("from_single_question", "Chain-of-Spot", "from_single_question", labels="from_single_question"),
    Arm("random_labels", "random labels", "from_single_question", labels="random"),
    Arm("gold_labels", "gold labels", "from_single_question", labels="gold"),
    Arm("gold_regions", "gold regions", "gold", weights="from_single_question"),
)
MAIN, BASE, CENTRE = "from_single_question", "none", "center_crop"
LABELS = ("from_single_question", "from_questions", "from_image", "random", "gold")


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Where and how. `model` is the checkpoint that every arm starts from; `jobs` processes run at a time, one core each."""

    out: Path
    model: str = "miniature"
    seed: int = 0
    test_seed: int = 7001
    quick: bool = False
    centre_bias: float = 0.0
    jobs: int = 0

    @property
    def size(self) -> DemoSize:
        return QUICK if self.quick else FULL

    @property
    def workers(self) -> int:
        return self.jobs or max(1, min(worker_process.cores(), 8))

    def labels(self, policy: str) -> Path:
        return self.out / "labels" / policy

    def weights(self, arm: Arm) -> Path:
        return self.out / "models" / (arm.weights or arm.name)

    def predictions(self, arm: Arm) -> Path:
        return self.out / "answers" / f"{arm.name}.jsonl"

    def scores(self, arm: Arm) -> Path:
        return self.out / "scores" / arm.name


def arm(name: str) -> Arm:
    """The arm called `name`."""
    return next(a for a in ARMS if a.name == name)


def settings(config: DemoConfig) -> Mapping[str, Any]:
    """What a reader of the report needs to run it again."""
    size = config.size
    return {
        "start checkpoint": config.model,
        "training scenes": size.train_scenes,
        "optimisation steps": size.steps,
        "batch": size.batch,
        "learning rate": size.learning_rate,
        "test scenes": size.test_scenes,
        "questions on a scene": size.questions,
        "seed": config.seed,
        "test seed": config.test_seed,
        "centre bias": config.centre_bias,
    }
