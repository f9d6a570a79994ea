"""Rules 5-11 by hand, and the batched way through two streams against the kept slow reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference.coattention_reference import region_relevance
from tiny_lxmert import FEATURES, make_model

from cos_core.relevance import coattention
from cos_core.relevance.coattention import CrossLayer, Maps, Pairs, Relevancies
from cos_core.relevance.propagation import SweepSettings, TargetKind

TEXT_LENGTHS = (11, 2, 7, 11, 5)
REGION_COUNTS = (13, 13, 1, 5, 7)


def questions(model: Any, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """One question each of TEXT_LENGTHS tokens on REGION_COUNTS regions, as LXMERT takes it, without padding."""
    generator = torch.Generator().manual_seed(seed)
    dtype = model.dtype
    return [
        {
            "input_ids": torch.randint(1, model.config.vocab_size, (1, t), generator=generator),
            "token_type_ids": torch.zeros(1, t, dtype=torch.long),
            "visual_feats": torch.randn(1, i, FEATURES, generator=generator, dtype=torch.float64).to(dtype),
            "visual_pos": torch.rand(1, i, 4, generator=generator, dtype=torch.float64).to(dtype),
        }
        for t, i in zip(TEXT_LENGTHS, REGION_COUNTS, strict=True)
    ]


def padded(asked: list[dict[str, torch.Tensor]], answers: list[int]) -> Pairs:
    t, i = (max(q[name].shape[1] for q in asked) for name in ("input_ids", "visual_feats"))

    def stacked(name: str, length: int, filler: float) -> torch.Tensor:
        rows = [q[name][0] for q in asked]
        out = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), filler)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
        return out

    return Pairs(
        ids=stacked("input_ids", t, 3),
        text_mask=torch.tensor([[k < q["input_ids"].shape[1] for k in range(t)] for q in asked]),
        features=stacked("visual_feats", i, 99.0),
        places=stacked("visual_pos", i, 0.5),
        region_mask=torch.tensor([[k < q["visual_feats"].shape[1] for k in range(i)] for q in asked]),
        answers=torch.tensor(answers),
    )


def score_of(kind: TargetKind, answer: int) -> Any:
    def score(logits: torch.Tensor) -> torch.Tensor:
        if kind == "argmax":
            return logits.max()
        chosen = logits[answer] if answer >= 0 else logits.max()
        index = answer if answer >= 0 else int(logits.argmax())
        if kind == "logit":
            return chosen
        p = torch.exp(logits - logits.max()) / torch.exp(logits - logits.max()).sum()
        return torch.log(p[index]) if kind == "logprob" else torch.log(p[index] / (1 - p[index]))

    return score


class TestRulesByHand:
    def test_normalisation_and_rows_without_relevance(self) -> None:
        gained = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
        assert coattention.normalised(gained).tolist() == [[[1.25, 0.75], [0.0, 1.0]]]

    def test_a_layer_of_each_stream(self) -> None:
        """Two tokens, one region; R_tt = 1 + [[0, 1], [0, 0]], R_ti = (5, 7)^T, and Abar = [[2, 0], [1, 3]]."""
        state = Relevancies(
            text=torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]),
            region=torch.tensor([[[4.0]]]),
            text_region=torch.tensor([[[5.0], [7.0]]]),
            region_text=torch.tensor([[[1.0, 2.0]]]),
        )
        after = coattention.through_text(state, torch.tensor([[[2.0, 0.0], [1.0, 3.0]]]))
        # Abar R_tt = [[2, 0], [1, 3]] [[1, 1], [0, 1]] = [[2, 2], [1, 4]]; Abar R_ti = (10, 26).
        assert after.text.tolist() == [[[2.0, 3.0], [1.0, 4.0]]]
        assert after.text_region.tolist() == [[[15.0], [33.0]]]
        assert after.region is state.region
        assert after.region_text is state.region_text
        after = coattention.through_regions(state, torch.tensor([[[0.5]]]))
        # R_ii = 5: 5 + 0.5 * 5 = 7.5; R_it = (1, 2) * 1.5.
        assert after.region.item() == 6.5
        assert after.region_text.tolist() == [[[1.5, 3.0]]]
        assert after.text is state.text

    def test_a_cross_layer_uses_old_values_and_transposes_the_left(self) -> None:
        """N(R_tt) = [[1, 1], [0.25, 1.75]], N(R_ii) = 2."""
        state = Relevancies(
            text=torch.tensor([[[0.0, 4.0], [1.0, 3.0]]]),
            region=torch.tensor([[[4.0]]]),
            text_region=torch.tensor([[[5.0], [7.0]]]),
            region_text=torch.tensor([[[1.0, 2.0]]]),
        )
        layer = CrossLayer(torch.tensor([[[8.0], [4.0]]]), torch.tensor([[[4.0, 8.0]]]), None, None)
        after = coattention.through_cross(state, layer)
        # N(R_tt)^T (8, 4) = (8 + 1, 8 + 7) = (9, 15), times 2.
        assert after.text_region.tolist() == [[[5.0 + 18], [7.0 + 30]]]
        # (8, 4)^T (1, 2)
        assert after.text.tolist() == [[[0.0 + 8, 4 + 16], [1 + 4, 3.0 + 8]]]
        # 2 (4, 8) N(R_tt) = 2 (4 + 2, 4 + 14)
        assert after.region_text.tolist() == [[[1.0 + 12, 2.0 + 36]]]
        # (4, 8) (5, 7)^T = 76
        assert after.region.item() == 4 + 76

    def test_what_no_answer_depends_on_adds_nothing(self) -> None:
        maps = Maps((None,), (None,), (CrossLayer(None, None, None, None),))
        state = coattention.propagated(maps, 2, 3, torch.empty(1, 0))
        assert not any(part.any() for part in (state.text, state.region, state.text_region, state.region_text))

    def test_the_last_layers_of_both_streams(self) -> None:
        cross = tuple(CrossLayer(torch.tensor(k), None, None, None) for k in range(3))
        maps = Maps(tuple(torch.arange(5)), tuple(torch.arange(2)), cross)
        assert [len(part) for part in (maps.last(2).text, maps.last(2).region, maps.last(2).cross)] == [0, 0, 2]
        assert maps.last(2).cross == cross[1:]
        assert [int(k) for k in maps.last(6).text] == [2, 3, 4]
        assert [int(k) for k in maps.last(6).region] == [0, 1]
        assert maps.last(None) is maps


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model().double()


class TestEquality:
    @pytest.mark.parametrize("target", ["logit", "log-odds", "logprob", "argmax"])
    @pytest.mark.parametrize("last_layers", [None, 1, 4])
    def test_batched_is_one_by_one_is_the_reference(self, model: Any, target: TargetKind, last_layers: int | None) -> None:
        asked, answers = questions(model), [3, 16, -1, 0, 5]
        settings = SweepSettings(target, last_layers)
        together, explained = coattention.explain(model, padded(asked, answers), settings)
        assert together.std() > 1e-3
        for row, index, answer, one in zip(together, explained, answers, asked, strict=True):
            (alone,), (same,) = coattention.explain(model, padded([one], [answer]), settings)
            slow = torch.tensor(region_relevance(model, one, score_of(target, answer), last_layers), dtype=torch.float64)
            count = len(slow)
            assert (alone - slow).abs().max() <= 1e-12
            assert (row[:count] - slow).abs().max() <= 1e-12
            assert not row[count:].any()
            assert index == same
            if target != "argmax" and answer >= 0:
                assert index == answer

    def test_at_the_depth_of_the_published_model(self) -> None:
        model = make_model(1, l_layers=9, r_layers=5, x_layers=5).double().requires_grad_(False)
        asked, answers = questions(model), [3, 16, -1, 0, 5]
        together, _ = coattention.explain(model, padded(asked, answers), SweepSettings("logit"))
        model.requires_grad_(True)
        for row, answer, one in zip(together, answers, asked, strict=True):
            slow = torch.tensor(region_relevance(model, one, score_of("logit", answer)), dtype=torch.float64)
            assert slow.max() > 1e-3
            assert (row[: len(slow)] - slow).abs().max() <= 1e-12
        assert not model._forward_hooks
        assert not any(module._forward_hooks for module in model.modules())

    def test_float32(self, model: Any) -> None:
        asked, answers = questions(model), [3, 16, -1, 0, 5]
        exact, _ = coattention.explain(model, padded(asked, answers), SweepSettings("logit"))
        single = make_model()
        found, _ = coattention.explain(single, padded(questions(single), answers), SweepSettings("logit"))
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() <= 1e-5 * float(exact.max())

    def test_a_row_without_relevance_spoils_nothing(self) -> None:
        """Without layers of its own a stream comes to the first cross layer with R - 1 = 0: the authors' code gives NaN."""
        model = make_model(2, l_layers=0, r_layers=0).double()
        asked = questions(model)[:1]
        (row,), _ = coattention.explain(model, padded(asked, [3]), SweepSettings("logit"))
        assert math.isfinite(float(row.sum()))
        assert row.max() > 0
        slow = torch.tensor(region_relevance(model, asked[0], score_of("logit", 3)), dtype=torch.float64)
        assert (row - slow).abs().max() <= 1e-12
