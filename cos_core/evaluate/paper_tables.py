"""The paper's Tables 1, 2, 3(a) and 3(b) as they are printed: rows, language models, figures, and the cells that are empty.

Percent, except MME (points) and MM-Vet (a grader's points). Rows of LLaVA-1.5 are those that Chain-of-Spot is measured on;
the other models of Tables 1 and 2 are its peers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table: the benchmark, the metric's path, its factor to the paper's unit, and the split that it is of."""

    title: str
    benchmark: str
    metric: str
    scale: float = 1.0
    split: str | None = None


VQA = (
    Column("VQAv2", "vqav2", "accuracy", split="test-dev"),
    Column("GQA", "gqa", "accuracy"),
    Column("VizWiz", "vizwiz", "accuracy", split="test"),
    Column("SQA-IMG", "scienceqa", "image_accuracy"),
    Column("TextVQA", "textvqa", "accuracy"),
    Column("OKVQA", "okvqa", "accuracy"),
)
MULTIMODAL = (
    Column("SEED", "seed", "Total", split="all"),
    Column("SEED-I", "seed", "image"),
    Column("MME", "mme", "perception"),
    Column("MMB", "mmbench", "accuracy", split="en"),
    Column("POPE", "pope", "mean_f1", 100.0),
    Column("MM-Vet", "mmvet", "total"),
)
ABLATION = (VQA[1], VQA[0])

Figures = tuple[float | None, ...]
"""One figure a column; None where the paper's cell is empty."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row: the name that a run is given under, the title, the paper's figures, the row that its gain is over, and the
    language model. `peer`: another model, which the paper gives for comparison."""

    name: str
    title: str
    figures: Figures
    reference: str | None = None
    language: str = ""
    peer: bool = False


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper. `remarks`: what is known of its figures beyond the paper."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[PaperRow]
    remarks: Sequence[str] = ()


_PEERS = {
    "blip2": ("BLIP-2", "Vicuna-13B"),
    "instructblip": ("InstructBLIP", "Vicuna-13B"),
    "shikra": ("Shikra", "Vicuna-13B"),
    "idefics-80b": ("IDEFICS-80B", "LLaMA-65B"),
    "qwen-vl": ("Qwen-VL", "Qwen-7B"),
    "qwen-vl-chat": ("Qwen-VL-Chat", "Qwen-7B"),
    "mplug-owl2": ("mPLUG-Owl2", "LLaMA-7B"),
    "monkey": ("Monkey", "Qwen-7B"),
}
"""Name -> title and language model, as Table 1 gives them."""


def _peers(figures: Mapping[str, Figures]) -> tuple[PaperRow, ...]:
    return tuple(PaperRow(name, _PEERS[name][0], each, None, _PEERS[name][1], True) for name, each in figures.items())


def _both(figures: Mapping[str, Figures]) -> tuple[PaperRow, ...]:
    """Rows of both sizes, without and with Chain-of-Spot."""
    return tuple(
        PaperRow(f"{kind}-{size}", f"LLaVA-1.5 {size.upper()}{' + CoS' if kind == 'cos' else ''}", figures[f"{kind}-{size}"],
            f"base-{size}" if kind == "cos" else None, f"Vicuna-{size.upper()}")
        for size in ("7b", "13b") for kind in ("base", "cos")
    )  # fmt: skip


_OTHERS = (
    "A dash is a cell that the paper leaves empty. Rows of other models are figures that the paper gives for comparison, taken "
    "over from other papers as far as is known. A run beside one checks that the protocol is the same; it reproduces nothing "
    "of Chain-of-Spot."
)
_MIXED = (
    "SEED-Bench's leaderboard has BLIP-2's 46.4 for Flan-T5-XL, and InstructBLIP's 53.4 and 58.8 for Vicuna-7B; the paper "
    "prints them in rows of Vicuna-13B."
)

TABLES = (
    PaperTable("Table 1: visual question answering", VQA, (
        *_peers({
            "blip2": (65.0, 32.3, 19.6, 61.0, 42.5, 45.9),
            "instructblip": (None, 49.5, 33.4, 63.1, 50.7, None),
            "shikra": (77.4, None, None, None, None, 47.2),
            "idefics-80b": (60.0, 45.2, 36.0, None, 30.9, None),
            "qwen-vl": (79.5, 59.3, 35.2, 67.1, 63.8, 58.6),
            "qwen-vl-chat": (78.2, 57.5, 38.9, 68.2, 61.5, 56.6),
            "mplug-owl2": (79.4, 56.1, 54.5, 68.7, 58.2, 57.7),
            "monkey": (80.3, 60.7, 61.2, 69.4, None, 61.3),
        }),
        *_both({
            "base-7b": (78.5, 62.0, 50.0, 66.8, 58.2, 57.9), "cos-7b": (80.7, 63.7, 50.8, 68.2, 60.9, 58.4),
            "base-13b": (80.0, 63.3, 53.6, 71.6, 61.3, 60.9), "cos-13b": (81.8, 64.8, 58.0, 71.9, 62.4, 62.9),
        }),
    ), (_OTHERS,)),
    PaperTable("Table 2: multimodal benchmarks", MULTIMODAL, (
        *_peers({
            "blip2": (46.4, None, 1293.8, None, 85.3, 22.4),
            "instructblip": (53.4, 58.8, 1212.8, 36.0, 78.9, 25.6),
            "qwen-vl": (56.3, 62.3, None, 38.2, None, None),
            "qwen-vl-chat": (58.2, 65.4, 1487.5, 60.6, None, None),
            "mplug-owl2": (61.6, None, 1450.2, 64.5, None, 36.2),
        }),
        *_both({
            "base-7b": (58.6, 66.1, 1510.7, 64.3, 85.9, 30.5), "cos-7b": (59.7, 67.1, 1501.1, 64.4, 86.4, 30.8),
            "base-13b": (61.6, 68.2, 1531.3, 67.7, 85.9, 35.4), "cos-13b": (62.3, 69.6, 1546.1, 68.2, 86.1, 37.6),
        }),
    ), (_OTHERS, _MIXED)),
    PaperTable("Table 3(a): how the region is found (13B)", ABLATION, (
        PaperRow("none", "without Chain-of-Spot", (63.9, 80.2)),
        PaperRow("center_crop", "centre crop", (64.0, 80.4), "none"),
        PaperRow("from_image", "from image", (64.1, 80.6), "none"),
        PaperRow("from_questions", "from questions", (64.3, 81.1), "none"),
        PaperRow("from_single_question", "from single question", (64.8, 81.8), "none"),
    )),
    PaperTable("Table 3(b): training (13B)", ABLATION, (
        PaperRow("low-rate", "lower learning rate", (64.1, 81.2), "one-epoch"),
        PaperRow("one-epoch", "learning rate 2e-5, one epoch", (64.8, 81.8)),
        PaperRow("two-epochs", "two epochs", (64.9, 81.2), "one-epoch"),
        PaperRow("three-epochs", "three epochs", (64.4, 80.9), "one-epoch"),
    )),
)  # fmt: skip
"""Learning rates and epochs of Table 3(b) are named by their order in the table."""

ROWS = tuple(dict.fromkeys(row.name for table in TABLES for row in table.rows))
