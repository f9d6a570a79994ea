"""`--scorer lmms-eval|vlmevalkit`: each quirk by hand, and the harnesses' own metric code as a second opinion.

Agreement where reference notes on the harnesses say they agree with the official scorer, difference where they differ: every
example of a difference stands in a table here, scored by the official rule, by ours of theirs, and by theirs.
"""

from __future__ import annotations

import copy
import json
import os
import re
import statistics
import string
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import harness_source

from cos_core import evaluate
from cos_core.benchmarks import _harness
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.evaluate import compare_runs as compare
from cos_core.files import plug
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import answers
from cos_core.types import Example, Prediction

GOLDEN = Path(__file__).parent / "golden"
LMMS, VLM = "lmms-eval", "vlmevalkit"


class _Any:
    """Stands for typing's names in their signatures."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item


class Silent:
    """What their modules log to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def value(
    benchmark: str, scorer: str | None, said: str, truth: tuple[str, ...], choices: tuple[str, ...] = (), **meta: str
) -> float:
    """One answer's score in points (0 to 1) by a benchmark's scorer."""
    options = {} if scorer is None else {"scorer": scorer}
    if (benchmark, scorer) == ("seed", VLM):
        options["split"] = "image"
    made = plug.load("benchmarks", benchmark, **options)
    data = BenchmarkData(
        benchmark, "x", [Example("1", benchmark, "x.png", "?", truth, choices, META | meta)], Path(), {"labels": True}
    )
    return float(made.score(data, {"1": Prediction("1", said)})[0].value)


GROUPS = (
    "answer_type question_type kind group structural semantic length steps category circle l2_category type data_type subject"
)
META = dict.fromkeys(GROUPS.split(), "")

# --- by hand ---------------------------------------------------------------------------------------------------------

RED, CAT = ("red",), ("cat", "dog", "a bird")
BY_HAND: list[tuple[str, str, tuple[str, ...], tuple[str, ...], float, float | None, float | None]] = [
    # benchmark, prediction, answers, choices: official (the default), lmms-eval, vlmevalkit
    ("gqa", "red.", RED, (), 1, 1, 0),  # VLMEvalKit strips spaces only
    ("gqa", " Red", RED, (), 0, 1, 1),
    ("gqa", "re-d!", RED, (), 0, 1, 0),  # all marks deleted
    ("gqa", "tshirt", ("t-shirt",), (), 0, 1, 0),  # in the answer, too
    ("gqa", "red .", RED, (), 0, 0, 0),  # stripped before, not after: "red "
    ("vqav2", "Red", RED * 10, (), 1, 1, None),
    ("vqav2", "two", ("two",) * 10, (), 0, 1, None),  # always both sides
    ("vqav2", "girl's", ("girl's",) * 10, (), 0, 1, None),  # never set apart
    ("vqav2", "1,,2", ("12",) * 5 + ("x",) * 5, (), 1, 1, None),
    ("okvqa", "two", ("two",) * 10, (), 0, 1, None),
    ("okvqa", "a,b", ("ab",) * 9 + ("c",), (), 1, 1, None),
    ("textvqa", "5.", ("5",) * 10, (), 1, 1, 0),  # VLMEvalKit keeps a period behind a digit
    ("textvqa", "5.", ("5.",) * 10, (), 1, 1, 1),
    ("textvqa", "girl 's", ("girl's",) * 10, (), 1, 1, 0),  # no word_tokenize
    ("textvqa", "a,b", ("b",) * 10, (), 0, 0, 1),
    ("vizwiz", "Unanswerable", ("unanswerable",) * 10, (), 1, 1, 1),
    ("vizwiz", "3.", ("3",) * 10, (), 1, 1, 0),
    ("scienceqa", "a", ("A",), CAT, 0, 1, 0),
    ("scienceqa", "A.cat", ("A",), CAT, 0, 1, 1),  # no space needed; to VLMEvalKit the period is one
    ("scienceqa", "The answer is B.", ("B",), CAT, 1, 0, 1),
    ("scienceqa", "It is a dog", ("B",), CAT, 0, 0, 1),
    ("seed", "A.", ("A",), CAT, 0, 1, 1),
    ("seed", "apple", ("A",), CAT, 0, 1, 0),
    ("seed", "B or C", ("B",), CAT, 0, 1, 0),
    ("seed", "the dog", ("B",), CAT, 0, 0, 1),
    ("mme", "Y", ("yes",), (), 0, 1, 0),
    ("mme", "N.", ("no",), (), 0, 1, 0),
    ("mme", "I say yes", ("yes",), (), 0, 0, 1),  # a word anywhere
    ("mme", "nothing", ("no",), (), 1, 1, 0),
    ("mme", "yes or no", ("yes",), (), 1, 1, 0),
    ("mme", " . no", ("no",), (), 0, 1, 1),  # not within the first four characters
    ("pope", "Yes.", ("yes",), (), 1, 0, 1),
    ("pope", "maybe", ("yes",), (), 1, 0, 0),  # the official script takes all but "no" for yes
    ("pope", "There is not a car", ("no",), (), 1, 0, 0),
    ("pope", "NO", ("no",), (), 0, 1, 1),
    ("mmbench", "(B).", ("B",), CAT, 1, 1, 1),
    ("mmbench", "b", ("B",), CAT, 0, 0, 0),
    ("mmbench", "A photo of the dog", ("A",), CAT, 1, 0, 0),  # A may be an article: both go on to the texts
    ("mmbench", "E", ("B",), CAT, 0, 0, 0),
    ("mmbench", "dog; A or B", ("B",), CAT, 1, 1, 1),  # two letters: the text decides
    ("mmbench", "B is what one would say here", ("B",), CAT, 1, 1, 0),  # VLMEvalKit: among the last four words
    ("mmbench", "The answer is B: no doubt about it", ("B",), CAT, 1, 1, 0),
    ("mmbench", "banana B?", ("B",), ("x", "y"), 0, 1, 0),
    ("mmbench", "banana B?", ("B",), ("x", "y", "z"), 0, 0, 0),  # the missing fourth option's text is "nan"
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "said", "truth", "choices", "official", "lmms", "vlm"), BY_HAND)
def test_quirks_by_hand(
    benchmark: str,
    said: str,
    truth: tuple[str, ...],
    choices: tuple[str, ...],
    official: float,
    lmms: float | None,
    vlm: float | None,
) -> None:
    found = [value(benchmark, None, said, truth, choices)]
    for scorer, expected in ((LMMS, lmms), (VLM, vlm)):
        if expected is None:
            with pytest.raises(InputError, match="has no scorer of its own"):
                value(benchmark, scorer, said, truth, choices)
            found.append(None)  # type: ignore[arg-type]
        else:
            found.append(value(benchmark, scorer, said, truth, choices))
    assert found == [official, lmms, vlm]


# --- POPE, MM-Vet: what is pooled, what is refused -------------------------------------------------------------------


def test_pope_is_pooled_by_both() -> None:
    """yes/"Yes", yes/"no", yes/"maybe", no/"yes.": a true positive, a false negative, and to lmms-eval neither of the others
    (precision 1, recall 1/2); to VLMEvalKit "maybe" is a false negative and "yes." a false positive, too."""
    said = [("yes", "Yes"), ("yes", "no"), ("yes", "maybe"), ("no", "yes.")]
    read = {scorer: plug.load("benchmarks", "pope", scorer=scorer) for scorer in (LMMS, VLM)}
    meta = {"category": "random"}
    asked = [Example(str(i), "pope", "x", "?", (truth,), (), meta) for i, (truth, _) in enumerate(said)]
    data = BenchmarkData("pope", "coco", asked, Path())
    predictions = {str(i): Prediction(str(i), s) for i, (_, s) in enumerate(said)}
    scores = {scorer: made.score(data, predictions) for scorer, made in read.items()}
    assert read[LMMS].metrics(data, scores[LMMS]) == {
        "pope_accuracy": 0.25,
        "pope_precision": 1.0,
        "pope_recall": 0.5,
        "pope_f1_score": pytest.approx(2 / 3),
        "pope_yes_ratio": 0.75,  # of the labels: the answers say yes to one or two
    }
    row = {"Overall": pytest.approx(40.0), "acc": 25.0, "precision": 50.0, "recall": pytest.approx(100 / 3)}
    assert read[VLM].metrics(data, scores[VLM]) == {**row, "random": row}


def test_what_a_scorer_cannot_be_asked_for() -> None:
    with pytest.raises(
        InputError, match="VLMEvalKit has no scorer of its own for vqav2; vqav2 has the scorers llava, official"
    ):
        plug.load("benchmarks", "vqav2", scorer=VLM)
    with pytest.raises(InputError, match="VLMEvalKit scores SEED-Bench's images only"):
        plug.load("benchmarks", "seed", scorer=VLM)
    with pytest.raises(InputError, match=r"mmvet's grades are a judge's.*--judge-model"):
        plug.load("benchmarks", "mmvet", scorer=LMMS)
    with pytest.raises(InputError, match="pope has the scorers official, lmms-eval, vlmevalkit, not 'm4c'"):
        plug.load("benchmarks", "pope", scorer="m4c")


def test_the_scorer_is_part_of_the_protocol(tmp_path: Path) -> None:
    for name, scorer in (("a", None), ("b", LMMS)):
        folder = GOLDEN / "pope"
        evaluate.run(EvalConfig("pope", folder, folder / "predictions.jsonl", tmp_path / name, scorer=scorer, replicates=100))
    with pytest.raises(InputError, match=r"\(scorer: official against lmms-eval\)"):
        compare.compare([tmp_path / "a", tmp_path / "b"])
    made = evaluate.run(EvalConfig("pope", folder, folder / "predictions.jsonl", scorer=LMMS, replicates=100)).results
    head = made["headline"]
    assert (head["metric"], head["value"]) == ("pope_f1_score", made["metrics"]["pope_f1_score"])
    assert head["low"] < head["value"] < head["high"]


# --- their own code --------------------------------------------------------------------------------------------------

PIECES = (
    "A|B|C|D|E|Z|(B)|A.|B,|C:|D)|:A|(D).|yes|Yes|NO|no|not|y|.|a|the|cat|Dog|a bird|nan|banana|The answer is|my choice is"
    "|答案是|1,000|1,,2|5.|3.5|U.S.A|it's|girl's|t-shirt|ping-pong -|dont|two|none|?|!|\n|\t||Ü|10%|Cannot determine the answer"
)
WORDS = st.sampled_from(PIECES.split("|"))
TEXTS = st.builds(lambda pieces, glue: glue.join(pieces), st.lists(WORDS, max_size=7), st.sampled_from(["", " ", "  ", ", "]))
OPTIONS = {"A": "cat", "B": "Dog", "C": "a bird"}


def lmms(file: str, *names: str, **given: Any) -> list[Any]:
    return harness_source.load("lmms_eval", file, *names, eval_logger=Silent(), **given)


def vlm(file: str, *names: str, **given: Any) -> list[Any]:
    return harness_source.load("vlmeval", file, *names, logger=Silent(), **given)


@pytest.fixture(scope="module")
def processor() -> Any:
    return lmms("tasks/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor", re=re)[0]


@given(TEXTS, st.lists(TEXTS, min_size=10, max_size=10) | st.builds(lambda text: [text] * 10, TEXTS))
def test_lmms_vqa(processor: Any, said: str, truth: list[str]) -> None:
    """TextVQA, VizWiz and OKVQA as LLaVA's m4c scorer; VQAv2 as neither that nor the official one."""
    assert answers.vqa_m4c(said) == processor()(said)
    for name in ("textvqa", "vizwiz_vqa", "ok_vqa"):
        (score,) = lmms(
            f"tasks/{name}/utils.py", f"{name}_process_results", EvalAIAnswerProcessor=processor, statistics=statistics
        )
        theirs = score({"answers": list(truth), "question_id": 1}, [said])["exact_match"]
        assert answers.vqa_accuracy(said, truth, "m4c") == pytest.approx(theirs)
    _, score = lmms(
        "tasks/vqav2/utils.py",
        "vqav2_process_results",
        "vqav2_process_results_val",
        EvalAIAnswerProcessor=processor,
        statistics=statistics,
    )
    rows = [{"answer": text, "answer_id": place} for place, text in enumerate(truth)]
    assert answers.vqa_accuracy(said, truth, "lmms-eval") == pytest.approx(
        score({"answers": rows, "question_id": 1}, [said])["exact_match"]
    )


def test_lmms_vqa_agrees_and_differs_where_it_should(processor: Any) -> None:
    rows = [json.loads(line) for line in (GOLDEN / "vqa_accuracy.jsonl").read_text(encoding="utf-8").splitlines()]
    (score,) = lmms("tasks/vqav2/utils.py", "vqav2_process_results", EvalAIAnswerProcessor=processor, statistics=statistics)
    differ = []
    for row in rows:
        assert processor()(row["prediction"]) == row["evalai_normalized"]
        truth = [{"answer": text, "answer_id": place} for place, text in enumerate(row["answers"])]
        theirs = score({"answers": truth, "question_id": 1}, [row["prediction"]])["exact_match"]
        if theirs != pytest.approx(row["official_vqa_accuracy"]):
            differ.append(len(set(row["answers"])))
    assert differ, "unanimous answers are where they part"
    assert set(differ) == {1}


@given(TEXTS, TEXTS)
def test_lmms_exact_match(said: str, truth: str) -> None:
    (match,) = lmms("api/metrics.py", "exact_match_hf_evaluate", np=np, re=re, string=string)
    theirs = match([said.strip()], [truth], ignore_case=True, ignore_punctuation=True)["exact_match"]
    assert value("gqa", LMMS, said, (truth,)) == theirs


@given(TEXTS, st.integers(0, 2))
def test_lmms_letters(said: str, truth: int) -> None:
    score, _ = lmms("tasks/scienceqa/utils.py", "sqa_process_results", "sqa_doc_to_target")
    theirs = score({"choices": list(OPTIONS.values()), "answer": truth}, [said])["exact_match"]
    letter, choices = "ABC"[truth], tuple(OPTIONS.values())
    assert value("scienceqa", LMMS, said, (letter,), choices) == theirs
    score, total = lmms("tasks/seedbench/utils.py", "seed_process_result", "seed_aggregation_result")
    read = score({"answer": letter, "data_type": "image", "question_id": 1}, [said])
    assert value("seed", LMMS, said, (letter,), choices) == total([read["seed_all"]])


@given(TEXTS, st.sampled_from([2, 3]))
def test_lmms_mmbench(said: str, count: int) -> None:
    pandas = type("pandas", (), {"isna": staticmethod(lambda cell: cell is None)})
    (evaluator,) = lmms("tasks/mmbench/mmbench_evals.py", "MMBench_Evaluator", string=string, os=os, pd=pandas)
    (extract,) = lmms("tasks/_task_utils/mcq_extract.py", "extract_mcq_answer", List=list, Optional=_Any)
    options = dict(list(OPTIONS.items())[:count])
    item = {"prediction": said.strip(), **dict.fromkeys("ABCD", "nan"), **options}
    theirs = evaluator().prefetch_answer(item) or extract(said.strip(), choices=["A", "B", "C", "D"])
    assert _harness.lmms_option_letter(said, options) == (theirs or None)


@given(TEXTS)
def test_lmms_yes_no(said: str) -> None:
    (parse,) = lmms("tasks/mme/utils.py", "parse_pred_ans")
    assert _harness.lmms_mme_label(said) == parse(said.strip())


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), TEXTS), min_size=1, max_size=14))
def test_lmms_pope(rows: list[tuple[str, str]]) -> None:
    names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
    score, *totals = lmms("tasks/pope/utils.py", "pope_process_results", *(f"pope_aggregate_{name}" for name in names))
    theirs = [
        score({"answer": truth, "question_id": i}, [said.strip()])["pope_f1_score"] for i, (truth, said) in enumerate(rows)
    ]
    made = plug.load("benchmarks", "pope", scorer=LMMS)
    asked = [Example(str(i), "pope", "x", "?", (truth,), (), {"category": "random"}) for i, (truth, _) in enumerate(rows)]
    data = BenchmarkData("pope", "coco", asked, Path())
    scores = made.score(data, {str(i): Prediction(str(i), said) for i, (_, said) in enumerate(rows)})
    expected = {f"pope_{name}": total(theirs) for name, total in zip(names, totals, strict=True)}
    assert made.metrics(data, scores) == pytest.approx(expected)


def test_lmms_pope_on_the_golden_answers_is_another_figure() -> None:
    """Where §14 says they part: the pooled F1 is not the mean of three, and the yes ratio is the labels'."""
    folder = GOLDEN / "pope"
    official, theirs = (
        evaluate.run(EvalConfig("pope", folder, folder / "predictions.jsonl", scorer=scorer, replicates=100)).results["metrics"]
        for scorer in (None, LMMS)
    )
    assert abs(official["mean_f1"] - theirs["pope_f1_score"]) > 1e-3
    said = sum(official[name]["tp"] + official[name]["fp"] for name in ("adversarial", "popular", "random"))
    assert theirs["pope_yes_ratio"] != pytest.approx(said / 178)


@given(
    st.lists(
        st.tuples(st.sampled_from(["yes", "no", "other"]), st.sampled_from(["yes", "no", "other"])), min_size=1, max_size=6
    )
)
def test_lmms_mme_sums_as_the_official_script(pairs: list[tuple[str, str]]) -> None:
    process, total = lmms(
        "tasks/mme/utils.py", "mme_process_results", "mme_aggregate_results", "parse_pred_ans", defaultdict=defaultdict
    )[:2]
    made = plug.load("benchmarks", "mme", scorer=LMMS)
    examples, predictions, theirs = [], {}, []
    for number, pair in enumerate(pairs):
        for place, said in enumerate(pair):
            truth, key, category = ("yes", "no")[place], f"{number}#{place}", ("count", "OCR")[number % 2]
            examples.append(Example(key, "mme", f"{number}.png", "?", (truth,), (), {"category": category}))
            predictions[key] = Prediction(key, said)
            row = process({"answer": truth, "category": category, "question_id": f"{category}/{number}"}, [said])
            theirs.append(row["mme_perception_score"])
    data = BenchmarkData("mme", "all", examples, Path())
    assert made.metrics(data, made.score(data, predictions))["perception"] == pytest.approx(total(theirs))


def test_lmms_mmvet_asks_another_question() -> None:
    """The header of its table is mangled and a blank line is missing; the seven examples are the official ones."""
    (theirs,) = lmms("tasks/mmvet/utils.py", "MM_VET_PROMPT")
    official = plug.load("benchmarks", "mmvet").judge_prompt()
    assert theirs != official
    assert theirs.replace("gpt_query_prompt |", "\nQuestion |") == official


@pytest.fixture(scope="module")
def kit() -> dict[str, Any]:
    """VLMEvalKit's functions by name."""
    punctuation, istype = vlm("smp/misc.py", "process_punctuation", "istype")
    _, answer, line = vlm(
        "dataset/utils/vqa_eval.py",
        "_process_digit_article",
        "process_answer",
        "process_line",
        process_punctuation=punctuation,
        istype=istype,
        np=np,
    )
    (yes_no,) = vlm("dataset/utils/yorn.py", "YOrN_Extraction", process_punctuation=punctuation)
    names = ("can_infer", "can_infer_option", "can_infer_text")
    infer, *_ = vlm("utils/matching_util.py", *names, cp=copy, os=os, re=re, string=string, Counter=Counter)
    return {"answer": answer, "line": line, "yes_no": yes_no, "infer": infer}


@given(TEXTS, st.lists(TEXTS, min_size=10, max_size=10))
def test_vlm_vqa(kit: dict[str, Any], said: str, truth: list[str]) -> None:
    assert answers.vqa_vlm(said) == kit["answer"](said)
    theirs = np.mean(kit["line"]({"answer": str(truth), "prediction": said})["match"])
    assert answers.vqa_accuracy(said, truth, "vlmevalkit") == pytest.approx(theirs)


@given(TEXTS, TEXTS.filter(lambda text: not text.strip().startswith("(")))
def test_vlm_gqa(kit: dict[str, Any], said: str, truth: str) -> None:
    theirs = kit["line"]({"answer": truth, "prediction": said}, method="accuracy")["match"]
    assert value("gqa", VLM, said, (truth,)) == theirs[0]


@given(TEXTS)
def test_vlm_yes_no(kit: dict[str, Any], said: str) -> None:
    assert _harness.vlm_yes_no(said) == {"Yes": "yes", "No": "no", "Unknown": "other"}[kit["yes_no"](said)]


@given(TEXTS, st.sampled_from([2, 3]))
def test_vlm_letters(kit: dict[str, Any], said: str, count: int) -> None:
    options = dict(list(OPTIONS.items())[:count])
    assert _harness.vlm_option_letter(said, options) == (kit["infer"](said, dict(options)) or None)
