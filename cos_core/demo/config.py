"""The demo's arms, its amount of work, and the paths of a run's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core import options
from cos_core.options import INPUT, OUTPUT, SPEED, option
from cos_core.system import worker_process
from cos_core.types import BoxDecode, CropContent


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much work: scenes to train on, optimisation steps, scenes to test on, questions on each scene."""

    train_scenes: int
    steps: int
    test_scenes: int
    batch: int = 16
    questions: int = 3
    learning_rate: float = 1e-3


START = "start"
"""The model of the arms that are not trained: the checkpoint that all others start from."""

FULL = DemoSize(train_scenes=3200, steps=300, test_scenes=400)
QUICK = DemoSize(train_scenes=160, steps=10, test_scenes=20)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a policy, for training and for answering, and the labels of the training if it has any.

    Arms of one model differ in how it answers: which region it is shown, what the second picture holds (`crop`).
    """

    name: str
    title: str
    about: str
    policy: str
    labels: str | None = None
    weights: str | None = None
    """The arm whose trained weights are used; None: weights of its own."""
    trained: bool = True
    """False: the start checkpoint itself answers."""
    box_decode: BoxDecode = "free"
    crop: CropContent = "region"

    @property
    def model(self) -> str:
        """The name of the model that answers; arms with the same one are answered together."""
        return (self.weights or self.name) if self.trained else START


ARMS = (
    Arm("none", "no Chain-of-Spot", "one pass, the whole picture only", "none"),
    Arm("center_crop", "centre crop", "the middle of the picture, always", "center_crop"),
    Arm("from_image", "from image", "a region chosen without knowing the question", "from_image", "from_image"),
    Arm("from_questions", "from questions", "one region for all questions on the picture", "from_questions", "from_questions"),
    Arm(
        "from_single_question",
        "Chain-of-Spot",
        "a region for this question; labels made by cos annotate",
        "from_single_question",
        "from_single_question",
    ),
    Arm(
        "black",
        "black",
        "control: the weights of Chain-of-Spot, shown black instead of the region",
        "from_single_question",
        weights="from_single_question",
        crop="black",
    ),
    Arm(
        "swap",
        "swapped",
        "control: the weights of Chain-of-Spot, shown the same box of another scene",
        "from_single_question",
        weights="from_single_question",
        crop="swap",
    ),
    Arm(
        "absent",
        "box alone",
        "control: the weights of Chain-of-Spot, told the box and shown no second picture",
        "from_single_question",
        weights="from_single_question",
        crop="absent",
    ),
    Arm(
        "untrained",
        "untrained",
        "control: the checkpoint that all others start from, in two passes",
        "from_single_question",
        trained=False,
    ),
    Arm(
        "untrained_grammar",
        "untrained, grammar",
        "control: the same, and its first pass can write nothing but a box",
        "from_single_question",
        trained=False,
        box_decode="grammar",
    ),
    Arm("random_labels", "random labels", "control: trained on windows drawn at random", "from_single_question", "random"),
    Arm("gold_labels", "gold labels", "reference: trained on the exact regions", "from_single_question", "gold"),
    Arm(
        "gold_regions",
        "gold regions",
        "reference: the weights of Chain-of-Spot, shown the exact region",
        "gold",
        weights="from_single_question",
    ),
)
MAIN, BASE, CENTRE = "from_single_question", "none", "center_crop"
UNTRAINED = ("untrained", "untrained_grammar")
"""The start checkpoint in two passes: what it does without annotation and training."""
BLACK = "black"
CONTENT = (BLACK, "swap", "absent")
"""Chain-of-Spot without what its region shows: how much of its gain is the region's content."""
LABELS = ("from_single_question", "from_questions", "from_image", "random", "gold")


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """`model`: the checkpoint that every arm starts from; `jobs`: processes at a time, one core each (0: one for each core).

    `centre_bias`: share of the questions that ask about the most central object.
    """

    out: Path = option(
        Path("runs/demo"),
        "Folder for the run: data, labels, models, answers, scores, index.html.",
        OUTPUT,
        not_in_fingerprint="where the run goes",
    )
    model: str = options.model_option("miniature")
    seed: int = options.seed_option()
    test_seed: int = options.seed_option(7001, "Seed of the held-out scenes.")
    quick: bool = option(False, "The same stages on little data, in two minutes; proves nothing.", INPUT)
    centre_bias: float = option(
        0.0,
        "Ask about the most central object this often (Appendix B of the paper).",
        INPUT,
        flag="--center-bias",
        formerly=("centre-bias",),
        low=0,
        high=1,
    )
    jobs: int = option(
        0,
        "Processes at a time, one core each.",
        SPEED,
        low=0,
        high=options.PROCESSES,
        shown_default="one a core",
        not_in_fingerprint="how many work at a time",
    )

    def __post_init__(self) -> None:
        options.check(self)
        if self.quick and self.out == Path("runs/demo"):
            object.__setattr__(self, "out", Path("runs/demo-quick"))

    @property
    def size(self) -> DemoSize:
        return QUICK if self.quick else FULL

    @property
    def workers(self) -> int:
        return self.jobs or max(1, min(worker_process.cores(), 8))

    def labels(self, policy: str) -> Path:
        return self.out / "labels" / policy

    def checkpoint(self, arm: Arm) -> str | Path:
        """The checkpoint that answers for `arm`; for a trained arm, the folder of its weights."""
        return self.out / "models" / arm.model if arm.trained else self.model

    def predictions(self, arm: Arm) -> Path:
        return self.out / "answers" / f"{arm.name}.jsonl"

    def scores(self, arm: Arm) -> Path:
        return self.out / "scores" / arm.name


def arm(name: str) -> Arm:
    """The arm called `name`."""
    return next(a for a in ARMS if a.name == name)


def models() -> Mapping[str, Sequence[Arm]]:
    """The models that answer, by name, each with its arms."""
    return {name: [each for each in ARMS if each.model == name] for name in dict.fromkeys(each.model for each in ARMS)}


def settings(config: DemoConfig) -> Mapping[str, Any]:
    """The settings that repeat the run, by their names in the report."""
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
