"""Makes the miniature checkpoint from random weights: `python scripts/pretrain_miniature.py --out DIR --seed 0`.

Three stages, all on one core:
  tower   the vision tower learns what stands under each patch (a stand-in for CLIP's pre-training);
  align   patch features, through the projector, learn to name their words in the language model's embeddings (LLaVA stage 1);
  talk    projector and language model learn to converse: grounded captions, questions and answers (LLaVA stage 2).
Tokens that never occurred are then settled, so that prompts of another form are met calmly.
The checkpoint, `pretrain.json` (settings, command, versions) and `pretrain_log.jsonl` are written to the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from miniature_lessons import Lesson, LessonPictures, LessonView, Teacher, patch_labels, views
from miniature_model import IMAGE_MEAN, IMAGE_STD, ModelShape, build, save
from miniature_tokenizer import box_marks, make_tokenizer, stand_ins

from cos_core.backbones.regions import centre_tokens
from cos_core.dialogue.encoding import IGNORE, Encoded
from cos_core.dialogue.prompts import load_profile
from cos_core.miniature.scenes import COLOURS, DIGITS, SHAPES

Log = Callable[[dict[str, Any]], None]
Loss = Callable[[random.Random, float], tuple[Any, dict[str, float]]]
"""(random numbers, progress in (0, 1]) -> (loss, figures to log)"""


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Steps of the three stages; `*_scenes` and the sorts of lessons below `talk_steps` are counts a step (pairs: at the
    start and at the end)."""

    seed: int = 0
    tower_steps: int = 900
    tower_scenes: int = 24
    align_steps: int = 450
    align_scenes: int = 22
    talk_steps: int = 1500
    places: tuple[int, int] = (28, 16)
    facts: tuple[int, int] = (4, 18)
    close: int = 12
    albums: int = 4
    learning_rate: float = 2e-3


class Miniature:
    """The model in the making and its optimisation; one object for the three stages."""

    def __init__(self, plan: PretrainSettings, log: Log) -> None:
        import torch

        self.plan, self.log, self.shape = plan, log, ModelShape()
        self.profile = load_profile("miniature")
        self.tokenizer = make_tokenizer(self.profile)
        self.model = build(self.tokenizer, self.shape, plan.seed)
        self.seen: set[int] = set()
        """Ids of the tokens that conversations held."""
        self.tower, self.projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        self.mean, self.std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)

    def pixels(self, pictures: Sequence[np.ndarray]) -> Any:
        """(n, 3, side, side) normalised as the image processor does."""
        import torch

        stacked = torch.from_numpy(np.stack(pictures)).float() / 255
        return ((stacked - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()

    def run_stage(self, name: str, steps: int, weights: Iterable[Any], loss: Loss) -> None:
        """AdamW with warm-up, a plateau and a linear end; logs means every 25 steps."""
        import torch

        weights = list(weights)
        optimizer = torch.optim.AdamW(weights, self.plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
        rng = random.Random(f"{name}/{self.plan.seed}")
        seen: list[dict[str, float]] = []
        started = time.process_time()
        for step in range(1, steps + 1):
            pace = min(1.0, step / 30) * min(1.0, max(0.03, (steps - step) / (0.35 * steps)))
            for group in optimizer.param_groups:
                group["lr"] = self.plan.learning_rate * pace
            value, details = loss(rng, step / steps)
            level = float(value.detach())
            if not math.isfinite(level):
                raise FloatingPointError(f"stage {name}: the loss is {level} at step {step}")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            seen.append({"loss": level, **details})
            if step % 25 == 0 or step == steps:
                keys = sorted({k for s in seen for k in s})
                means = {k: round(float(np.mean([s[k] for s in seen if k in s])), 4) for k in keys}
                self.log({"stage": name, "step": step, "cpu_seconds": round(time.process_time() - started, 1), **means})
                seen = []

    # --- tower and align: dense labels ---

    def train_tower(self) -> None:
        import torch

        sizes = [len(COLOURS) + 1, len(SHAPES) + 1, len(DIGITS) + 1]
        head = torch.nn.Linear(self.shape.width, sum(sizes))

        def loss(rng: random.Random, _: float) -> tuple[Any, dict[str, float]]:
            batch = views(rng, self.plan.tower_scenes, self.shape.image_side)
            hidden = self.tower(self.pixels([v.pixels for v in batch])).last_hidden_state[:, 1:]
            return self._dense_loss(torch.split(head(hidden), sizes, dim=-1), batch)

        self.run_stage("tower", self.plan.tower_steps, [*self.tower.parameters(), *head.parameters()], loss)

    def train_align(self) -> None:
        table = self.model.get_input_embeddings().weight
        marks = box_marks(self.profile)
        rows = [[f" {w}" for w in COLOURS], [f" {w}" for w in SHAPES], [f" {w}" for w in DIGITS], marks[0], marks[2]]
        nothing = self.tokenizer.pad_token_id
        ids = [[*self.tokenizer.convert_tokens_to_ids(row), nothing] for row in rows]

        def loss(rng: random.Random, _: float) -> tuple[Any, dict[str, float]]:
            batch = views(rng, self.plan.align_scenes, self.shape.image_side)
            features = self.projector(self.tower(self.pixels([v.pixels for v in batch])).last_hidden_state[:, 1:])
            features = features * (features.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
            logits = 2 * features @ table.T
            return self._dense_loss([logits[..., row] for row in ids], batch)

        self.run_stage("align", self.plan.align_steps, [*self.tower.parameters(), *self.projector.parameters(), table], loss)

    def _dense_loss(self, logits: Sequence[Any], batch: Sequence[LessonView]) -> tuple[Any, dict[str, float]]:
        """Cross-entropy of each patch's labels, "nothing here" weighing less; accuracies over patches with something."""
        import torch

        lines = len(box_marks(self.profile)[0]) - 1
        labels = torch.from_numpy(np.stack([patch_labels(v.things, self.shape.grid, lines) for v in batch])).flatten(2)
        close = torch.tensor([v.close for v in batch])[:, None]
        total, details = torch.zeros(()), {}
        for name, scores, wanted in zip(("colour", "shape", "digit", "left", "bottom"), logits, labels.unbind(1), strict=False):
            something = wanted != scores.shape[-1] - 1
            weight = torch.where(something, 1.0, 0.3)
            each = torch.nn.functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
            total = total + (each * weight.flatten()).sum() / weight.sum()
            right = scores.argmax(-1) == wanted
            for side, patches in (("wide", something & ~close), ("close", something & close)):
                details[f"{name}_{side}"] = float(right[patches].float().mean())
        return total, details

    # --- talk: conversations ---

    def train_talk(self) -> None:
        for weight in self.tower.parameters():
            weight.requires_grad_(False)
        teacher = Teacher(
            self.profile, self.tokenizer, self.model.config.image_token_id, self.shape.grid**2, self.shape.image_side
        )

        def loss(rng: random.Random, progress: float) -> tuple[Any, dict[str, float]]:
            # Places come first: every other answer needs them.
            places, where = self._talk_loss([teacher.place(rng) for _ in range(_between(self.plan.places, progress))])
            facts, what = self._talk_loss([teacher.fact(rng) for _ in range(_between(self.plan.facts, progress))])
            close, read = self._talk_loss([teacher.close(rng) for _ in range(self.plan.close)])
            albums, scores = self._album_loss([teacher.album(rng) for _ in range(self.plan.albums)])
            # Each sort has a mean of its own: the few tokens of one-word answers would drown among the boxes.
            loss = (0.5 - 0.2 * progress) * places + (0.1 + 0.25 * progress) * facts + 0.25 * close + 0.2 * albums
            return loss, {**where, **what, **{f"{kind}_close": share for kind, share in read.items()}, **scores}

        self.run_stage("talk", self.plan.talk_steps, [w for w in self.model.parameters() if w.requires_grad], loss)
        for weight in self.tower.parameters():
            weight.requires_grad_(True)

    def _talk_loss(self, lessons: Sequence[Lesson]) -> tuple[Any, dict[str, float]]:
        ids, mask, labels = self._padded([x.encoded for x in lessons])
        pixels = self.pixels([x.view.pixels for x in lessons])
        out = self.model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels)
        return out.loss, _accuracy_by_kind(lessons, _right(out.logits, labels))

    def _album_loss(self, albums: Sequence[LessonPictures]) -> tuple[Any, dict[str, float]]:
        import torch

        seen = self.model.get_image_features(pixel_values=self.pixels([part for a in albums for part in a.parts])).pooler_output
        tokens = centre_tokens(torch.stack(list(seen)), self).split([len(a.parts) for a in albums])
        features = torch.cat([part for album, part in zip(albums, tokens, strict=True) for _ in album.conversations])
        ids, mask, labels = self._padded([c for album in albums for c in album.conversations])
        places = (ids == self.model.config.image_token_id)[..., None]
        embeddings = self.model.get_input_embeddings()(ids).masked_scatter(places, features)
        out = self.model(inputs_embeds=embeddings, attention_mask=mask, labels=labels)
        right = _right(out.logits, labels)
        return out.loss, {"album": float(right[::2].mean())}

    def _padded(self, rows: Sequence[Encoded]) -> tuple[Any, Any, Any]:
        """Token ids, attention mask and labels, (rows, longest), padded on the right."""
        import torch

        self.seen.update(*(row.ids for row in rows))
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), IGNORE)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row.ids)
            labels[number, : len(row)] = torch.tensor(row.labels)
        return ids, (torch.arange(longest)[None] < lengths[:, None]).long(), labels

    def settle(self) -> None:
        """Embeddings of tokens that no conversation held, which training has only pushed away from every answer.

        The phrases of a Chain-of-Spot dialogue become the plain ones in whose place they stand, so that the model takes such
        a prompt for a question; all others are made quiet, so that unknown words do not drown known ones.
        """
        import torch

        table = self.model.get_input_embeddings().weight
        like = {token: source for token, source in stand_ins(self.tokenizer, self.profile).items() if token not in self.seen}
        with torch.no_grad():
            for token in set(range(len(self.tokenizer))) - self.seen:
                table[token] = table[like[token]] if token in like else 0.1 * table[token]


def _between(ends: tuple[int, int], progress: float) -> int:
    return round(ends[0] + progress * (ends[1] - ends[0]))


def _right(logits: Any, labels: Any) -> np.ndarray:
    """For each learnt token, in order, whether it was predicted: (learnt tokens,) of 0 and 1."""
    scores = (logits.detach()[:, :-1].argmax(-1) == labels[:, 1:])[labels[:, 1:] != IGNORE]
    result: np.ndarray = scores.float().numpy()
    return result


def _accuracy_by_kind(lessons: Sequence[Lesson], right: np.ndarray) -> dict[str, float]:
    """Mean token accuracy of each kind of answer, end marks left out; boxes by their first two numbers."""
    scores: dict[str, list[float]] = {}
    at = 0
    for lesson in lessons:
        for kind, tokens in lesson.kinds:
            answer = right[at : at + tokens - 1]
            scores.setdefault(kind, []).append(float(answer[:2].mean() if kind.startswith("where") else answer.mean()))
            at += tokens
    return {kind: float(np.mean(values)) for kind, values in scores.items()}


def pretrain(plan: PretrainSettings, out: Path, log: Log) -> None:
    """Runs the three stages and writes the checkpoint to `out`."""
    import torch

    torch.set_num_threads(1)
    mini = Miniature(plan, log)
    mini.train_tower()
    mini.train_align()
    mini.train_talk()
    mini.settle()
    save(mini.model.eval(), mini.tokenizer, mini.profile, mini.shape, out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps to run (tests use a tiny one)")
    arguments = parser.parse_args(argv)
    plan = PretrainSettings(seed=arguments.seed)
    steps = {k: max(1, round(arguments.scale * getattr(plan, k))) for k in ("tower_steps", "align_steps", "talk_steps")}
    plan = PretrainSettings(**{**asdict(plan), **steps})
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "pretrain_log.jsonl").open("w", encoding="utf-8") as file:

        def log(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            sys.stderr.write(json.dumps(row) + "\n")

        started = time.process_time()
        pretrain(plan, arguments.out, log)
    from cos_core.files.manifest import versions

    record = {
        "command": f"python scripts/pretrain_miniature.py --out DIR --seed {arguments.seed} --scale {arguments.scale:g}",
        "plan": asdict(plan),
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": versions(),
    }
    (arguments.out / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
