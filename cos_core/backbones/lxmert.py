"""Relevance of the answer to a detector's regions through LXMERT: the route of the released README (CoS §3.2, Chefer et al.).

LXMERT (Tan and Bansal, 2019) reads a question and, for each region, a feature vector and its place; it answers by choosing
among the few thousand answers it was trained on. It never sees pixels: features come from the detector, `detectron2` or
`precomputed`. The rules are in coattention.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cos_core.errors import InputError, MissingError
from cos_core.files import plug
from cos_core.files.jsonl import decode
from cos_core.files.manifest import fingerprint
from cos_core.files.text import first_line
from cos_core.interfaces import Backbone, Detector, Relevance
from cos_core.models import checkpoint_files, devices, hub, pretrained
from cos_core.relevance import coattention
from cos_core.relevance.propagation import SweepSettings, TargetKind
from cos_core.relevance.roi import RoiRule
from cos_core.scoring import answers
from cos_core.system import memory
from cos_core.types import Example, Regions

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LxmertForQuestionAnswering, PreTrainedConfig, PreTrainedTokenizerBase

ROI = RoiRule("component", threshold=0.5, extend=0.1)
"""Boxes at least half as relevant as the best, as far as they touch it: one far second box would stretch a union over the whole
picture. Sides grow by a tenth (the paper's "slightly")."""

LABEL_FILES = ("trainval_label2ans.json", "label2ans.json", "trainval_ans2label.json")
"""Looked for beside the weights when the configuration names no answers, as the published VQA checkpoint's does not."""

ACTIVATION_BYTES = 2**31
# Kept for the backward pass, in vectors of the hidden size, a position and layer: norms, queries, keys, values, the wide MLP.
_KEPT_VECTORS = 16


@dataclass(frozen=True, slots=True)
class LxmertBackbone(Backbone):
    """Made by `build`. `labels`: the model's answers, in the order of its outputs; empty when no file names them."""

    model: LxmertForQuestionAnswering
    tokenizer: PreTrainedTokenizerBase
    detector: Detector
    labels: Labels
    rules: SweepSettings
    settings: Mapping[str, Any]
    roi: RoiRule = ROI
    together: memory.Allowance = field(default_factory=memory.Allowance, repr=False)
    """Questions at once, when memory has run out for more."""

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Backbone."""
        return self.detector.notes

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone. An image in which the detector finds nothing gives regions without boxes.

        Where the gold answer is none of the model's, the model's own choice is explained instead, and the Relevance says so.
        """
        regions = [self._detected(image, examples) for image, examples in groups]
        work = [
            (e, candidates)
            for (_, examples), candidates in zip(groups, regions, strict=True)
            for e in examples
            if candidates.boxes
        ]
        explained = iter(self._explained(work))
        return [
            [next(explained) if candidates.boxes else Relevance(_scored(candidates, ())) for _ in examples]
            for (_, examples), candidates in zip(groups, regions, strict=True)
        ]

    def _detected(self, image: Image, examples: Sequence[Example]) -> Regions:
        """The detector's regions with features that fit this model. Raises MissingError for a detector that gives none."""
        path = next((e.image for e in examples), None) or ""
        regions = self.detector.detect(image, path)
        if not regions.boxes:
            return regions
        if regions.features is None:
            raise _no_features(self.detector)
        shape, expected = np.shape(regions.features), (len(regions.boxes), int(self.model.config.visual_feat_dim))
        if shape != expected:
            raise InputError(
                f"the detector's features of the image {path!r} have shape {shape}, but this LXMERT needs {expected[1]} "
                f"numbers for each of the {expected[0]} boxes"
            )
        if not np.isfinite(regions.features).all():
            raise InputError(f"the detector's features of the image {path!r} are not finite")
        return regions

    def _explained(self, work: Sequence[tuple[Example, Regions]]) -> list[Relevance]:
        expected = [self._expected(example) for example, _ in work]
        ids = [self._ids(example.question) for example, _ in work]
        results: list[Relevance | None] = [None] * len(work)

        def rows_and_answers(batch: Sequence[int]) -> list[tuple[list[float], int]]:
            pairs = self._pairs([(ids[i], work[i][1], expected[i]) for i in batch])
            rows, explained = coattention.explain(self.model, pairs, self.rules)
            return list(zip(rows.tolist(), explained.tolist(), strict=True))

        for batch in self._batches([(len(row), len(regions.boxes)) for row, (_, regions) in zip(ids, work, strict=True)]):
            for i, (row, answer) in zip(
                batch, memory.in_parts(batch, rows_and_answers, len(batch), self.together), strict=True
            ):
                example, regions = work[i]
                results[i] = Relevance(
                    _scored(regions, row[: len(regions.boxes)]), note=self._note(example, expected[i], answer)
                )
        return [relevance for relevance in results if relevance is not None]

    def _expected(self, example: Example) -> int:
        """Index of the answer to explain, -1 for the model's own choice. Raises InputError without an answer."""
        if self.rules.target == "argmax" or not example.question:
            return -1
        if not example.answers:
            raise InputError(f"example {example.id!r} has no answer whose relevance could be found")
        return self.labels.index(example.answers[0])

    def _note(self, example: Example, expected: int, answer: int) -> str | None:
        if expected >= 0 or self.rules.target == "argmax" or not example.question:
            return None
        return f"{self.labels.names[answer]!r} was explained: the answer {example.answers[0][:80]!r} is none of the model's"

    def _ids(self, question: str) -> list[int]:
        longest = int(self.model.config.max_position_embeddings)
        ids: list[int] = self.tokenizer(question, truncation=True, max_length=longest)["input_ids"]
        return ids

    def _batches(self, sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of like size together, as many as memory allows for (at least one); `sizes`: tokens and regions."""
        batch: list[int] = []
        tokens = regions = 0
        for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
            tokens, regions = max(tokens, sizes[i][0]), max(regions, sizes[i][1])
            if batch and (len(batch) + 1) * _pair_bytes(self.model, tokens, regions) > ACTIVATION_BYTES:
                yield batch
                batch, (tokens, regions) = [], sizes[i]
            batch.append(i)
        if batch:
            yield batch

    def _pairs(self, questions: Sequence[tuple[list[int], Regions, int]]) -> coattention.Pairs:
        """Questions (ids, regions, expected answer), padded."""
        device, dtype = self.model.device, self.model.dtype
        count, text = len(questions), max(len(ids) for ids, _, _ in questions)
        most = max(len(regions.boxes) for _, regions, _ in questions)
        ids = torch.zeros(count, text, dtype=torch.long)
        features = torch.zeros(count, most, int(self.model.config.visual_feat_dim), dtype=torch.float64)
        places = torch.zeros(count, most, 4, dtype=torch.float64)
        text_mask, region_mask = torch.zeros(count, text, dtype=torch.bool), torch.zeros(count, most, dtype=torch.bool)
        for k, (row, regions, _) in enumerate(questions):
            boxes = len(regions.boxes)
            ids[k, : len(row)], text_mask[k, : len(row)], region_mask[k, :boxes] = torch.tensor(row), True, True
            features[k, :boxes] = torch.as_tensor(np.asarray(regions.features, np.float64))
            places[k, :boxes] = torch.tensor([box.corners for box in regions.boxes], dtype=torch.float64)
        return coattention.Pairs(
            ids=ids.to(device),
            text_mask=text_mask.to(device),
            features=features.to(device, dtype),
            places=places.to(device, dtype),
            region_mask=region_mask.to(device),
            answers=torch.tensor([expected for _, _, expected in questions], device=device),
        )


def build(
    model: str,
    detector: Detector | None = None,
    target: TargetKind = "logit",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    labels: str | None = None,
) -> LxmertBackbone:
    """Loads an `LxmertForQuestionAnswering` checkpoint with its tokenizer, a local folder or a hub id.

    `detector` None: `detectron2` with its own settings. `target`: see relevance.target_score, over the model's answers; "logit"
    is Chefer et al.'s. `last_layers`: counted in each stream, cross layers last (coattention.Maps.last). `labels`: a JSON file
    that names the model's answers: a list, or an object from answer to index or back (LXMERT's `trainval_label2ans.json`,
    `trainval_ans2label.json`); None: the configuration's `id2label`, or one of LABEL_FILES beside the weights.

    Weights are read from safetensors, or from the `pytorch_model.bin` that the published checkpoint has, by torch's
    `weights_only` loader, which runs no code. Raises MissingError for a detector without features, InputError for a checkpoint,
    labels or features that do not fit.
    """
    rules = SweepSettings(target, last_layers)
    model = hub.resolve(model, pickles=True)
    net, tokenizer = _loaded(model, device, dtype)
    named = _labels(model, net.config, labels)
    if not named.names and target != "argmax":
        raise InputError(
            f"the checkpoint {model} names no answers, so gold answers cannot be looked up; give their file "
            "(labels=trainval_label2ans.json), or explain the model's own choice (target argmax)"
        )
    proposer: Detector = detector or plug.load("detectors", "detectron2")
    _check_features(proposer, int(net.config.visual_feat_dim))
    settings = {
        "name": "lxmert",
        "model": hub.fingerprint(model),
        "dtype": str(net.dtype).removeprefix("torch."),
        "labels": fingerprint({"names": named.names}),
        "target": target,
        "last_layers": last_layers,
        "detector": plug.described(proposer),
    }
    return LxmertBackbone(net, tokenizer, proposer, named, rules, settings)


class Labels:
    """A model's answers by name. Names are compared as written but for case and outer punctuation, then as VQA does."""

    __slots__ = ("_exact", "_normal", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact: dict[str, int] = {}
        self._normal: dict[str, int] = {}
        for i, name in enumerate(self.names):
            self._exact.setdefault(answers.plain(name), i)
            self._normal.setdefault(answers.vqa_official(name), i)

    def index(self, answer: str) -> int:
        """Its place among the model's outputs, -1 for an answer that the model does not know."""
        return self._exact.get(answers.plain(answer), self._normal.get(answers.vqa_official(answer), -1))


def _loaded(model: str, device: str, dtype: str) -> tuple[LxmertForQuestionAnswering, PreTrainedTokenizerBase]:
    """(model with frozen weights in eval mode, tokenizer)."""
    target, kind = devices.placement(device, dtype)
    config = checkpoint_files.settings(Path(model), checkpoint_files.CONFIG)
    if config is None:
        raise InputError(f"{model} is not a checkpoint: it has no config.json")
    if (kind_of_model := config.get("model_type")) != "lxmert":
        raise InputError(f"the backbone 'lxmert' needs an LXMERT checkpoint, and {model} is of the kind {kind_of_model!r}")
    checkpoint_files.look_over(Path(model))
    import transformers

    try:
        with pretrained.reading(model, passed=(pickle.UnpicklingError,)):
            net, info = transformers.LxmertForQuestionAnswering.from_pretrained(
                model, dtype=kind, attn_implementation="eager", weights_only=True, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except pickle.UnpicklingError:
        raise InputError(f"the weights of {model} hold more than tensors, which could run code; nothing was loaded") from None
    pretrained.check_complete(model, info)
    return net.to(target).eval().requires_grad_(False), tokenizer


def _labels(model: str, config: PreTrainedConfig, file: str | None) -> Labels:
    size = int(config.num_qa_labels)
    names = [str(config.id2label.get(i, "LABEL_")) for i in range(size)]
    beside = [path for name in LABEL_FILES if (path := Path(model) / name).is_file()]
    if file is None and not any(name.startswith("LABEL_") for name in names):
        return Labels(names)
    if file is None and not beside:
        return Labels(())
    path = Path(file) if file is not None else beside[0]
    names = _read_labels(path)
    if len(names) != size:
        raise InputError(f"{path} names {len(names)} answers, but the checkpoint {model} has {size}")
    return Labels(names)


def _read_labels(path: Path) -> list[str]:
    """The answers of a JSON file, in order. Raises InputError when it holds none or has gaps."""
    try:
        data: Any = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"the labels {path} cannot be read: {first_line(error)}") from None
    if isinstance(data, Mapping):
        try:
            by_index = {int(a): str(b) for a, b in data.items()} if "0" in data else {int(b): str(a) for a, b in data.items()}
        except (TypeError, ValueError):
            raise InputError(f"the labels {path} must map answers to indices, or indices to answers") from None
        data = [by_index.get(i) for i in range(len(data))]
    if not isinstance(data, list) or not data or not all(isinstance(name, str) for name in data):
        raise InputError(f"the labels {path} must be a list of answers, or an object with an index from 0 for each")
    return data


def _check_features(detector: Detector, numbers: int) -> None:
    """Raises MissingError for a detector known to give other features, before the first picture is looked at."""
    size = detector.feature_size
    if size == 0:
        raise _no_features(detector)
    if size not in (None, numbers):
        raise MissingError(
            f"the detector gives features of {size} numbers, but this LXMERT needs {numbers}; use a C4 configuration, or read "
            "them from files (detector 'precomputed')"
        )


def _no_features(detector: Detector) -> MissingError:
    name = plug.described(detector)["plugin"]
    return MissingError(
        f"the detector {name!r} gives boxes without features, and LXMERT sees nothing else; use 'detectron2' with a C4 "
        "configuration, or read features from files with 'precomputed'"
    )


def _scored(regions: Regions, scores: Sequence[float]) -> Regions:
    """The regions with scores, and without features, which are not needed any more."""
    return replace(regions, scores=tuple(scores), features=None)


def _pair_bytes(model: LxmertForQuestionAnswering, tokens: int, regions: int) -> int:
    """What one question keeps for the backward pass, about."""
    config = model.config
    cross = 2 * int(config.x_layers)
    positions = tokens * (int(config.l_layers) + cross) + regions * (int(config.r_layers) + cross)
    size: int = positions * int(config.hidden_size) * _KEPT_VECTORS * model.dtype.itemsize
    return size
