"""Sampled answers of the local engines: exact distributions, and draws that depend on the request's seed alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families
import torch
from PIL import Image
from test_engine_hf import Short, alike, requests, short_of_memory
from tiny_llava import make_checkpoint

from cos_core.dialogue import prompts
from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import read_box
from cos_core.engines import _sampling
from cos_core.engines._batch import NOT_FINITE, GenerationJob, choices
from cos_core.engines._plain import PlainEngine
from cos_core.engines._sampling import Draws, drawn, heated, nucleus
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Request, Sampling
from cos_core.models import general, llava

PROFILE = prompts.load_profile("paper")
LOGITS = (2.0, -1.0, 0.5, 1.5, -math.inf, 0.5, -3.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> llava.Llava:
    return llava.load(make_checkpoint(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="float32")


@pytest.fixture
def engine(tiny: llava.Llava) -> HfEngine:
    return HfEngine(tiny)


def exact(logits: Sequence[float], temperature: float, top_p: float = 1.0) -> dict[int, float]:
    """Token to probability, of the tokens that can be drawn; in plain Python, by the definition."""
    weights = [math.exp(value / temperature) for value in logits]
    left, kept, reached = sum(weights), {}, 0.0
    for token in sorted(range(len(weights)), key=lambda token: -weights[token]):
        if reached >= top_p * left and top_p < 1:
            break
        kept[token] = weights[token]
        reached += weights[token]
    return {token: weight / sum(kept.values()) for token, weight in kept.items() if weight}


def assert_drawn_from(tokens: Sequence[int], chances: dict[int, float]) -> None:
    """Pearson's chi-square test; a true sample fails once in a million (Wilson and Hilferty's approximation)."""
    counts = Counter(tokens)
    assert set(counts) <= set(chances)
    total, freedom = len(tokens), len(chances) - 1
    assert min(chances.values()) * total >= 5, "more draws are needed for this test"
    statistic = sum((counts[token] - total * chance) ** 2 / (total * chance) for token, chance in chances.items())
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3


def sampled(asked: Sequence[Request], temperature: float = 1.5, top_p: float = 0.95, first: int = 0) -> list[Request]:
    """The same requests, each with a seed of its own."""
    return [replace(one, sampling=Sampling(temperature, top_p, first + seed)) for seed, one in enumerate(asked)]


# --- the distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.8, 0.95, 1.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(temperature: float, top_p: float) -> None:
    settings = torch.tensor([[temperature], [top_p]], dtype=torch.float64)
    kept = nucleus(heated(torch.tensor([LOGITS]), settings[:1]), settings[1:])[0]
    chances = exact(LOGITS, temperature, top_p)
    assert kept.nonzero().flatten().tolist() == sorted(chances)
    assert float(kept.sum()) >= top_p - 1e-12
    assert kept.sum() - min(kept[list(chances)]) < top_p or top_p == 1
    for token, chance in chances.items():
        assert float(kept[token] / kept.sum()) == pytest.approx(chance, rel=1e-12)


def test_the_nucleus_by_hand() -> None:
    """Shares of 8, 4, 2, 1 and 1 sixteenths: what reaches top_p is in, and of two equal tokens the first comes first."""
    shares = torch.tensor([1.0, 2.0, 8.0, 1.0, 4.0], dtype=torch.float64).expand(6, 5) / 16
    top_p = torch.tensor([[0.5], [0.51], [0.9], [0.9375], [0.94], [1.0]], dtype=torch.float64)
    kept = nucleus(shares, top_p) > 0
    assert kept.tolist() == [
        [False, False, True, False, False],
        [False, False, True, False, True],
        [True, True, True, False, True],
        [True, True, True, False, True],
        [True, True, True, True, True],
        [True, True, True, True, True],
    ]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (2.0, 0.7)])
def test_tokens_are_drawn_from_the_exact_distribution(
    temperature: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sampling, "NUMBERS", 7 * 1001)  # several parts, the last one shorter
    draws = [Draws(Sampling(temperature, top_p, seed)) for seed in range(20_000)]
    tokens = drawn(torch.tensor([LOGITS]).expand(20_000, -1), draws)[:, 0].tolist()
    assert_drawn_from(tokens, exact(LOGITS, temperature, top_p))


def test_one_seed_draws_from_the_exact_distribution_too() -> None:
    draws, logits = Draws(Sampling(1.0, 0.9, 7)), torch.tensor([LOGITS])
    assert_drawn_from([int(drawn(logits, [draws])) for _ in range(5_000)], exact(LOGITS, 1.0, 0.9))


def test_extremes() -> None:
    draws = [Draws(Sampling(heat, top_p, 3)) for heat, top_p in ((1e-300, 1.0), (1e-6, 1.0), (1.0, 1e-300), (1e300, 1.0))]
    tokens = drawn(torch.tensor([[1.0, 3.0, 2.999]] * 4), draws)[:, 0].tolist()
    assert tokens[:3] == [1, 1, 1]
    assert tokens[3] in (0, 1, 2)
    equal = drawn(torch.zeros(3_000, 4), [Draws(Sampling(1e300, 1.0, seed)) for seed in range(3_000)])[:, 0].tolist()
    assert_drawn_from(equal, dict.fromkeys(range(4), 0.25))


def test_gumbel_noise_draws_from_any_subset() -> None:
    """The first that may stand, in the drawn order, is drawn from the softmax renormalised over those that may."""
    values = [value for value in LOGITS if math.isfinite(value)]
    allowed = {1, 2, 4}
    orders = [Draws(Sampling(0.8, 0.01, seed)).order(values) for seed in range(8_000)]
    assert all(sorted(order) == list(range(len(values))) for order in orders[:20])
    chances = exact([value if place in allowed else -math.inf for place, value in enumerate(values)], 0.8)
    assert_drawn_from([next(place for place in order if place in allowed) for order in orders], chances)


def jobs(engine: HfEngine, samplings: Sequence[Sampling | None], grammar: BoxGrammar | None = None) -> list[GenerationJob]:
    turns, image = prompts.dialogue(PROFILE, "what"), Image.new("RGB", (40, 30), "red")
    request = Request(turns, {"full": image}, 30, grammar)
    return [engine._job(place, replace(request, sampling=one)) for place, one in enumerate(samplings)]


def like(job: GenerationJob, sampling: Sampling) -> GenerationJob:
    """The same job, sampled; its prompt is not prepared anew."""
    request = replace(job.request, sampling=sampling)
    return GenerationJob(0, request, job.tokens_in, job.row, job.grammar, ids=list(job.ids))


def test_a_step_draws_and_keeps_the_lead_of_the_best(engine: HfEngine) -> None:
    logits = torch.randn(1, engine.llava.rows, generator=torch.Generator().manual_seed(1)).float()
    logits[0, 12:] = -math.inf
    (greedy,) = jobs(engine, [None])
    made = [greedy, *(like(greedy, Sampling(1.5, 0.9, seed)) for seed in range(3_000))]
    found = choices(made, logits.expand(3_001, -1))
    first, second = logits[0].topk(2).values.tolist()
    assert found[0] == (int(logits.argmax()), first - second)
    assert {lead for _, lead in filter(None, found)} == {first - second}
    assert_drawn_from([token for token, _ in filter(None, found[1:])], exact(logits[0].tolist(), 1.5, 0.9))


def test_a_grammar_draws_from_what_it_lets_through(engine: HfEngine) -> None:
    """A digit of a coordinate: ten tokens, or what the profile's step leaves; everything else has most of the probability."""
    (greedy,) = jobs(engine, [None], BoxGrammar(PROFILE))
    tokens = greedy.grammar
    assert tokens is not None
    greedy.ids = tokens.ids_of("[0.1")
    logits = torch.randn(1, engine.llava.rows, generator=torch.Generator().manual_seed(2))
    able = [token for token in tokens.candidates if tokens._can(greedy.ids, token)]
    assert len(able) >= 4
    masked = [value if token in able else -math.inf for token, value in enumerate(logits[0].tolist())]
    found = choices([like(greedy, Sampling(1.3, 0.2, seed)) for seed in range(3_000)], logits.expand(3_000, -1))
    first, second = sorted((masked[token] for token in able), reverse=True)[:2]
    assert {round(lead, 5) for _, lead in filter(None, found)} == {round(first - second, 5)}
    assert_drawn_from([token for token, _ in filter(None, found)], exact(masked, 1.3))


def test_numbers_that_are_none_are_said_of_sampled_rows_too(engine: HfEngine) -> None:
    logits = torch.zeros(3, engine.llava.rows)
    logits[1, 5], logits[2, 5] = math.nan, math.inf
    found = choices(jobs(engine, [Sampling(1.0, 0.9, seed) for seed in range(3)]), logits)
    assert found[0] is not None
    assert found[0][1] == 0.0
    assert found[1:] == [NOT_FINITE, NOT_FINITE]


def test_one_transfer_a_step(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [*jobs(engine, [None, Sampling(1.0, 0.9, 1), Sampling(0.5, 1.0, 2)]),
            *jobs(engine, [None, Sampling(1.0, 0.9, 3)], BoxGrammar(PROFILE))]  # fmt: skip
    transfers: list[torch.Tensor] = []
    for name in ("cpu", "tolist", "item", "__bool__", "numpy"):
        real = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *rest: object, real: object = real, name: str = name) -> object:
            if self.numel() and (name == "cpu" or not transfers):
                transfers.append(self)
            return real(self, *rest)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, counted)
    choices(made, torch.randn(5, engine.llava.rows))
    assert len(transfers) == 1


# --- requests --------------------------------------------------------------------------------------------------------


def test_neighbours_and_order_decide_nothing(engine: HfEngine) -> None:
    """Greedy and sampled rows together, alone, and in another order."""
    asked = sampled(requests(18))
    asked[::4] = [replace(one, sampling=None) for one in asked[::4]]
    together = engine.generate(asked)
    alone = [HfEngine(engine.llava, reuse=False).generate([one])[0] for one in asked]
    order = random.Random(3).sample(range(18), 18)
    other = engine.generate([asked[place] for place in order])
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    assert [other[order.index(place)].ids for place in range(18)] == [reply.ids for reply in together]
    greedy = HfEngine(engine.llava).generate(requests(18))
    assert [reply.ids for reply in together[::4]] == [reply.ids for reply in greedy[::4]]
    assert sum(a.ids != b.ids for a, b in zip(together, greedy, strict=True)) > 9
    for one, other_way in zip(together, alone, strict=True):
        assert one.margins == pytest.approx(other_way.margins, abs=1e-4)


def test_samples_of_one_prompt_share_its_beginning(engine: HfEngine) -> None:
    """Eight seeds of one second pass: one prompt is computed, seeds differ, equal seeds do not."""
    (request,) = alike(1, budget=8)
    asked = sampled([request] * 8)
    replies = engine.generate([*asked, asked[2]])
    assert len({reply.ids for reply in replies}) >= 7
    assert replies[8].ids == replies[2].ids
    assert all(reply.cached == reply.tokens_in - 1 for reply in replies)
    alone = [HfEngine(engine.llava, reuse=False).generate([one])[0].ids for one in asked]
    assert [reply.ids for reply in replies[:8]] == alone
    assert [reply.ids for reply in engine.generate(asked)] == alone, "a second run draws the same"


def test_a_small_nucleus_is_the_likeliest_token(engine: HfEngine) -> None:
    greedy = engine.generate(requests(6))
    for temperature, top_p in ((1.0, 1e-9), (1e-6, 1.0)):
        replies = engine.generate(sampled(requests(6), temperature, top_p))
        assert [reply.ids for reply in replies] == [reply.ids for reply in greedy]
        assert [reply.margins for reply in replies] == [pytest.approx(reply.margins, abs=1e-4) for reply in greedy]


def test_memory_that_runs_out_draws_nothing_twice(engine: HfEngine) -> None:
    asked = sampled(alike(7, budget=5))
    expected = [reply.ids for reply in engine.generate(asked)]
    heard: list[str] = []
    asked[0] = replace(asked[0], listen=heard.append)
    # Fails at the third token of a batch of seven: two have been drawn for each by then.
    count = 0

    class Late(Short):
        def __call__(self, layer: object, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal count
            count += args[0].shape[0] == 7 and args[0].shape[1] == 1
            if count > 2:
                super().__call__(layer, args)

    with short_of_memory(engine, Late(3)) as short:
        replies = engine.generate(asked)
    assert short.failures[0] == 7
    assert [reply.ids for reply in replies] == expected
    assert "".join(heard).strip() == replies[0].text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_boxes_are_drawn_by_grammar(engine: HfEngine) -> None:
    grammar = BoxGrammar(PROFILE)
    asked = [replace(one, grammar=grammar, max_new_tokens=48) for one in sampled(alike(1, 1) * 6, 1.0)]
    together = engine.generate(asked)
    assert [read_box(reply.text, PROFILE)[1] for reply in together] == ["ok"] * 6
    assert len({reply.text for reply in together}) > 3
    assert [reply.ids for reply in together] == [engine.generate([one])[0].ids for one in asked]
    assert all(reply.finished and not reply.ended and math.inf in reply.margins for reply in together)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_the_plain_engine_draws_the_same(name: str, tmp_path: Path) -> None:
    loaded = general.load(tiny_families.build(name, tmp_path / "m"), device="cpu", dtype="float32")
    image = Image.frombytes("RGB", (60, 40), random.Random(5).randbytes(7200))
    ask = Request(prompts.dialogue(loaded.profile, "what", chain=False), {"full": image}, 9)
    asked = [*sampled([ask] * 3, first=11), ask]
    if name == "llava_next":
        box = replace(ask, grammar=BoxGrammar(loaded.profile), max_new_tokens=48)
        asked += [*sampled([box] * 2), box]
    plain, fast = PlainEngine(loaded).generate(asked), HfEngine(loaded).generate(asked)
    assert [(reply.ids, reply.ended) for reply in plain] == [(reply.ids, reply.ended) for reply in fast]
    assert len({reply.ids for reply in plain[:4]}) == 4
    for one, other in zip(plain, fast, strict=True):
        assert one.margins == pytest.approx(other.margins, abs=1e-4)


def test_the_end_mark_is_said(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [reply.ids for reply in engine.generate(requests(6))]
    monkeypatch.setattr(engine.llava.model.generation_config, "eos_token_id", free[5][2])
    for reply in HfEngine(engine.llava).generate(requests(6)):
        assert reply.ended == (reply.ids[-1] == free[5][2])
        assert reply.margin == min(reply.margins[: -1 if reply.ended and len(reply.ids) > 1 else None])
