"""A job over all that can be wrong with a data set: each told with file and line and kept in the store, the rest done."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from annotate_jobs import failures, stored
from hostile import BROKEN, ODD
from reporters import Told
from tiny_llava import make_checkpoint

from cos_core.annotate import AnnotateConfig, run
from cos_core.errors import FailuresError
from cos_core.files import manifest

TALK = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> AnnotateConfig:
    root = tmp_path_factory.mktemp("bad")
    (root / "images").mkdir()
    (root / "secret.png").write_bytes(b"not for you")
    lines = []
    for number, hostile in enumerate([*BROKEN, *ODD]):
        name = f"{number}.jpg"
        hostile.make(root / "images" / name)
        lines.append(json.dumps({"id": hostile.name, "image": name, "conversations": TALK}))
    odd, good = ODD[0].name, f"{len(BROKEN)}.jpg"
    lines += [
        json.dumps({"id": "outside", "image": "../secret.png", "conversations": TALK}),
        json.dumps({"id": "absolute", "image": str(root / "secret.png"), "conversations": TALK}),
        '{"id": "torn", "image": "1.jpg", "conver',
        json.dumps({"id": "three turns", "image": "18.jpg", "conversations": [*TALK, TALK[0]]}),
        lines[len(BROKEN)],  # the same record a second time
        json.dumps({"id": odd, "image": good, "conversations": [TALK[0], {"from": "gpt", "value": "another"}]}),
        json.dumps({"id": "no words", "image": good, "conversations": [TALK[0], {"from": "gpt", "value": " "}]}),
        "[1, 2]",
        json.dumps({"id": "megabyte", "image": good, "conversations": [TALK[0], {"from": "gpt", "value": "red " * 250_000}]}),
        json.dumps({"id": "long", "image": good, "conversations": [{"from": "human", "value": "x " * 9000}, TALK[1]]}),
    ]
    (root / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return AnnotateConfig(
        data=root / "data.jsonl",
        images=root / "images",
        model=str(make_checkpoint(root / "model", image_size=28)),
        out=root / "store",
        device="cpu",
        dtype="float32",
    )


def test_one_job_over_all_of_it(job: AnnotateConfig) -> None:
    told = Told()
    made = run(replace(job, max_failures=100), told)
    first = len(BROKEN) + len(ODD) + 1
    why = failures(job)
    for line, hostile in enumerate(BROKEN, 1):
        sentence = why.pop(f"{hostile.name}#q0")
        assert sentence.startswith(f"{job.data}:{line}: ")
        assert hostile.reason is not None
        assert hostile.reason.replace("x.png", f"{line - 1}.jpg") in sentence, "a file's own name"
        assert "\n" not in sentence
    for line, name in ((first, "outside"), (first + 1, "absolute")):
        assert why.pop(f"{name}#q0").startswith(f"{job.data}:{line}: the image path ")
    records = {first + 2: "JSON", first + 3: "odd number of turns", first + 4: "was there before", first + 6: "is empty"}
    for line, reason in {**records, first + 7: "object"}.items():
        sentence = why.pop(f"data.jsonl:{line}")
        assert sentence.startswith(f"{job.data}:{line}: ")
        assert reason in sentence
    assert all("too long" in why.pop(f"{name}#q0") for name in ("megabyte", "long"))
    assert why == {}
    found = stored(job)
    assert found["three turns#q0"].image == "18.jpg", "only its last question has no answer"
    # A second record under a used id has a name of its own.
    names = [name for name in found if "~" in name]
    assert len(names) == 1
    assert sorted(found) == sorted([*(f"{hostile.name}#q0" for hostile in ODD), *names, "three turns#q0"])
    assert made.counts["ok"] + made.counts["no_region"] == len(ODD) + 2
    assert made.counts["failed"] == len(BROKEN) + 2 + 6 + 2 + made.counts["no_region"]
    assert len(told.warnings) == 7, "five, how many more, and the most frequent reason"
    assert manifest.read(job.out) == made
    again = run(replace(job, max_failures=100), Told())
    assert (again.counts, failures(job)) == ({**made.counts, "new": 0}, failures(job))


def test_a_job_that_allows_no_failure_keeps_what_it_did(job: AnnotateConfig) -> None:
    strict = replace(job, out=job.out.with_name("strict"), max_failures=13, batch_images=2)
    with pytest.raises(FailuresError, match=r"\b14\b.*\b13\b.*`cos store ls .* --failures`"):
        run(strict, Told())
    assert manifest.read(strict.out).status == "failed"
    assert len(failures(strict)) >= 13
