"""What the demo's page shows, as plain values: whoever ran the demo fills these in, and the page computes no score.

Shares are in [0, 1]; intervals are 95 %; boxes are in frame "image"; paths are relative to `DemoReport.images` or absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.visualize.draw import EncoderView

ArmRole = Literal["method", "baseline", "arm", "control", "reference"]
"""Chain-of-Spot itself; what it is measured against; another row of CoS Table 3a; a control; an upper line."""


@dataclass(frozen=True, slots=True)
class ArmScore:
    """`correct` of `total` questions."""

    correct: int
    total: int

    @property
    def share(self) -> float | None:
        return self.correct / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One row of the table: how one way of choosing the region did.

    `low`, `high`: the accuracy's interval; `hit`: share of questions whose region holds the right object's centre (None: none);
    `area`: those regions' mean share of the picture, since a large one hits easily;
    `status`: box status -> count; `kinds`: question kind -> Tally; `explain`: a few words on what the arm does.
    """

    name: str
    correct: int
    total: int
    low: float
    high: float
    role: ArmRole = "arm"
    explain: str = ""
    hit: float | None = None
    area: float | None = None
    status: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, ArmScore] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """`arm` minus `against` on the same questions: `difference` in shares with its paired interval.

    `kind` None: over all questions. `gained`: questions that only `arm` got right; `lost`: only `against`. `goal`: the
    difference that was asked for beforehand, if any.
    """

    arm: str
    against: str
    difference: float
    low: float
    high: float
    kind: str | None = None
    gained: int | None = None
    lost: int | None = None
    goal: float | None = None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """How the labels that annotation made compare with the gold regions, for one kind of question ("all": every one).

    `hit`: share that holds the right object's centre; `iou`: mean intersection over union; `chance`: a random region's hit.
    """

    kind: str
    count: int
    hit: float
    iou: float
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's answer to one question."""

    text: str
    correct: bool


@dataclass(frozen=True, slots=True)
class DemoCard:
    """One question on one scene, answered with and without Chain-of-Spot."""

    example_id: str
    image: Path
    kind: str
    question: str
    truth: str
    without: Answered
    with_cos: Answered
    predicted: Box | None = None
    gold: Box | None = None
    annotated: Box | None = None
    box_text: str = ""
    box_status: str = "ok"


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture made elsewhere (PNG), with a title and a sentence that says what it shows."""

    title: str
    path: Path
    caption: str = ""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The whole page. `comparisons` starts with Chain-of-Spot against no Chain-of-Spot over all questions: the headline.

    `kinds` orders the columns; `encoder` is the vision encoder's input; `quick` marks a run that proves nothing; `caveat`
    stands under the headline: what its figure does not say;
    `next_steps` are (what it does, command) pairs; `settings` and `provenance` are shown as they are.
    """

    title: str
    arms: tuple[ArmRow, ...]
    comparisons: tuple[ArmComparison, ...]
    kinds: tuple[str, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    cards: tuple[DemoCard, ...] = ()
    plots: tuple[Plot, ...] = ()
    encoder: EncoderView = field(default_factory=EncoderView)
    images: Path | None = None
    quick: bool = False
    note: str = ""
    caveat: str = ""
    next_steps: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise InputError("a report needs at least one arm")
        names = {arm.name for arm in self.arms}
        for comparison in self.comparisons:
            for name in (comparison.arm, comparison.against):
                if name not in names:
                    raise InputError(f"a comparison names the arm {name!r}, which the report does not have")

    @property
    def headline(self) -> ArmComparison | None:
        """The first comparison over all questions."""
        return next((c for c in self.comparisons if c.kind is None), None)

    def arm(self, name: str) -> ArmRow:
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; boxes as four numbers, paths as text."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DemoReport:
        """The inverse of `to_json`. Raises InputError when a part is missing or has another shape."""
        try:
            return cls(
                **{
                    **data,
                    "arms": tuple(_arm(a) for a in data["arms"]),
                    "comparisons": tuple(ArmComparison(**c) for c in data["comparisons"]),
                    "kinds": tuple(data.get("kinds", ())),
                    "labels": tuple(LabelRow(**row) for row in data.get("labels", ())),
                    "cards": tuple(_card(c) for c in data.get("cards", ())),
                    "plots": tuple(Plot(**{**p, "path": Path(p["path"])}) for p in data.get("plots", ())),
                    "encoder": EncoderView(**{**data["encoder"], "fill": tuple(data["encoder"]["fill"])}),
                    "images": Path(data["images"]) if data.get("images") else None,
                    "next_steps": tuple((str(w), str(c)) for w, c in data.get("next_steps", ())),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a demo report: {error}") from None


def _arm(data: Mapping[str, Any]) -> ArmRow:
    return ArmRow(**{**data, "kinds": {kind: ArmScore(**tally) for kind, tally in data.get("kinds", {}).items()}})


def _card(data: Mapping[str, Any]) -> DemoCard:
    boxes = {k: None if data.get(k) is None else Box.from_json(data[k]) for k in ("predicted", "gold", "annotated")}
    answers = {k: Answered(**data[k]) for k in ("without", "with_cos")}
    return DemoCard(**{**data, **boxes, **answers, "image": Path(data["image"])})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"x0", "y0", "x1", "y1", "frame"}:
            return {"box": [value["x0"], value["y0"], value["x1"], value["y1"]], "frame": value["frame"]}
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return value.as_posix()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
