"""`cos doctor --server`: a server that departs from the local prompt in each known way is told in what it departs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Behaviour, serving
from test_layers import WITHOUT_TORCH
from tiny_llava import byte_tokenizer

from cos_cli import main
from cos_core.dialogue.prompts import load_profile
from cos_core.doctor import prompt
from cos_core.doctor.server import probes
from cos_core.models.llava import encoder

IMAGE_TOKENS = 16
PAPER = load_profile("paper")

Findings = list[dict[str, Any]]
Served = Callable[..., Behaviour]

# What the profile "paper" means, as a template: parts in their order, the line break behind a picture its own.
RIGHT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content[0].text }} {% elif m.role == 'user' %}USER: "
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {{ m.content[0].text }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
# The hub's template for LLaVA-1.5 (llava-hf/llava-1.5-7b-hf), shortened: pictures before texts, a space behind each text.
OF_THE_HUB = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def edited(old: str, new: str) -> str:
    assert old in RIGHT
    return RIGHT.replace(old, new)


def front(between: str) -> str:
    return edited(
        "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}",
        "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}"
        f"{{{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('{between}') }}}}",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the doctor reads of a checkpoint: settings, and a tokenizer with a token a byte, so that it misses nothing."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    where = tmp_path_factory.mktemp("checkpoint")
    tokenizer = byte_tokenizer()
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(image_size=56, patch_size=14)
    text = LlamaConfig(vocab_size=len(tokenizer))
    LlavaConfig(vision_config=vision, text_config=text, image_token_id=image).save_pretrained(where)
    tokenizer.save_pretrained(where)
    (where / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    return str(where)


@pytest.fixture
def served(folder: str) -> Served:
    """Makes servers that say where the folder is."""

    def made(**behaviour: Any) -> Behaviour:
        models = [{"id": "served", "object": "model", "root": folder}]
        usual = {"template": RIGHT, "folder": folder, "image_tokens": IMAGE_TOKENS, "models": models}
        return Behaviour(**{**usual, **behaviour})

    return made


def told(
    behaviour: Behaviour, capsys: pytest.CaptureFixture[str], *more: str, model: str = "served"
) -> tuple[int, Findings, str]:
    """(exit code, findings, stderr)"""
    with serving(behaviour) as url:
        code = main.run(["doctor", "--server", url, "--model", model, "--json", *more])
    said = capsys.readouterr()
    return code, json.loads(said.out)["findings"], said.err


def of(check: str, findings: Findings) -> Findings:
    return [finding for finding in findings if finding["check"] == check]


@pytest.mark.parametrize("tokenize", [None, "expanded", "placeholders"])
def test_a_server_that_computes_the_local_prompt(
    tokenize: str | None, folder: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings, err = told(served(tokenize=tokenize), capsys)
    assert (code, err) == (0, "")
    assert {finding["level"] for finding in findings} == {"ok", "note"}
    (said,) = of("prompt", findings)
    worded = replace(encoder(folder), profile=PAPER)
    first, second = (len(worded.encode(turns)) for turns in probes(PAPER))
    assert f"{first} and {second} tokens" in said["said"]
    assert ("id by id" in said["said"]) == (tokenize is not None)
    assert "do not show" in of("pictures", findings)[0]["said"]


DEPARTURES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no start token": ({"special": False}, ("start token <s> is missing",)),
    "two start tokens": ({"template": "<s>" + RIGHT}, ("start token <s> stands there twice",)),
    "no end mark": ({"template": edited("</s>", "")}, ("end mark after the assistant's turn is missing",)),
    "space for the end mark": ({"template": edited("</s>", " ")}, ("space stands where the end mark",)),
    "no system text": (
        {"template": edited("{{ m.content[0].text }} {% elif", "{% elif")},
        ("system text is missing",),
    ),
    "picture in front": ({"template": front("")}, ("moved to the front of its turn",)),
    "picture in front, line break": ({"template": front("\\n")}, ("front of its turn, with a line break between",)),
    "no break behind a picture": ({"template": edited("<image>\n", "<image>")}, ("line break behind each picture is missing",)),
    "two breaks behind a picture": (
        {"template": edited("<image>\n", "<image>\n\n")},
        ("behind each picture stands there twice",),
    ),
    "other picture": ({"image_tokens": IMAGE_TOKENS + 5}, (f"{IMAGE_TOKENS + 5} positions there and {IMAGE_TOKENS} here",)),
    "the hub's template in vLLM": (
        {"template": OF_THE_HUB, "special": False},
        ("start token <s> is missing", "space stands where the end mark", "front of its turn, with a space between the texts"),
    ),
}


@pytest.mark.parametrize(
    ("name", "tokenize"),
    [*((name, "expanded") for name in DEPARTURES), ("no start token", "placeholders"), ("other picture", "placeholders")],
)
def test_ids_name_what_differs(name: str, tokenize: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour, reasons = DEPARTURES[name]
    code, findings, err = told(served(tokenize=tokenize, **behaviour), capsys)
    assert code == 4
    assert err.count("\n") == 1
    said = of("prompt", findings)
    assert {finding["level"] for finding in said} == {"missing"}
    explained = said[1]["said"]
    assert all(" from token " in finding["said"] for finding in said[2:]), "ids leave one explanation"
    assert all(reason in explained for reason in reasons), explained
    assert explained.count(";") == len(reasons) - 1, "and nothing beside it"


@pytest.mark.parametrize("name", [name for name in DEPARTURES if name != "the hub's template in vLLM"])
def test_counts_alone_name_what_fits(name: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    behaviour, (reason,) = DEPARTURES[name]
    code, findings, _ = told(served(**behaviour), capsys)
    said = of("prompt", findings)
    if said[0]["level"] == "ok":
        # As many tokens in another order: the report says that counts do not show it.
        assert name in ("picture in front", "space for the end mark")
        assert "can go unseen" in said[0]["said"]
        return
    assert code == 4
    assert any(reason in finding["said"] for finding in said[1:]), said


def test_an_unknown_departure_shows_its_place(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings, _ = told(served(template=edited("USER: ", "Human: "), tokenize="expanded"), capsys)
    assert code == 4
    first, second = of("prompt", findings)[1:]
    assert ("USER" in first["said"], "pass 1" in first["said"], "pass 2" in second["said"]) == (True, True, True)
    code, findings, _ = told(served(template=RIGHT + " (in a few words:)"), capsys)
    assert (code, "no known difference" in of("prompt", findings)[-1]["said"]) == (4, True)


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "another model": (
        {"models": [{"id": "cos-13b"}, {"id": "cos-7b"}], "refuses": (404, "The model `served` does not exist.")},
        "model",
        "lists cos-13b, cos-7b",
    ),
    "no model": ({"models": [], "refuses": (404, "nothing here")}, "model", "lists no model"),
    "a second picture": ({"images": 1}, "passes", "refuses a second picture"),
    "pictures": ({"images": 0}, "passes", "refuses pictures"),
    "no template": (
        {"refuses": (400, "default chat template is no longer allowed, so you must provide a chat template")},
        "passes",
        "has no chat template",
    ),
    "a broken server": ({"refuses": (500, "CUDA error\x1b[31m\nat line 3")}, "passes", "HTTP 500: CUDA error"),
    "a key": ({"key": "secret"}, "server", "refuses a request without a key"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_is_a_sentence(
    name: str, served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    behaviour, check, words = REFUSALS[name]
    code, findings, err = told(served(**behaviour), capsys)
    assert (code, err.count("\n")) == (4, 1)
    assert findings[-1]["check"] == check
    assert findings[-1]["level"] == "missing"
    assert words in findings[-1]["said"]
    assert findings[-1]["todo"]


def test_the_key_that_is_refused_and_the_one_that_is_not(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    code, findings, _ = told(served(key="secret"), capsys)
    assert (code, "the key in OPENAI_API_KEY" in findings[0]["said"]) == (4, True)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert told(served(key="secret"), capsys)[0] == 0


def test_what_cannot_be_compared_is_said(folder: str, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings, _ = told(served(models=[{"id": "served"}]), capsys)
    assert (code, [f["level"] for f in findings]) == (0, ["ok", "warning", "ok", "warning", "note"])
    code, findings, _ = told(served(models=None), capsys, "--profile", "repo-2024")
    assert (code, of("server", findings)[0]["level"], of("wording", findings)[0]["todo"]) == (0, "note", None)
    code, findings, _ = told(served(silent=True), capsys)
    assert (code, "neither" in of("prompt", findings)[0]["said"]) == (0, True)
    # A model that the server answers for without listing it, named by its folder.
    code, findings, _ = told(served(models=[]), capsys, model=folder)
    assert (code, of("prompt", findings)[0]["level"]) == (0, "ok")


def test_another_wording_is_another_prompt(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**PAPER.to_json(), "turn_end": ""}))
    code, findings, _ = told(served(tokenize="expanded"), capsys, "--profile", str(path))
    assert (code, "white space" in of("prompt", findings)[1]["said"]) == (4, False)
    path.write_text(json.dumps({**PAPER.to_json(), "system": ""}))
    code, findings, _ = told(served(tokenize="expanded"), capsys, "--profile", str(path))
    assert (code, of("prompt", findings)[0]["level"]) == (0, "ok"), "the template writes the system message that it is sent"


def test_lines_for_people_and_the_machine_beside(served: Served, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(served(refuses=(500, "red \x1b[31m"))) as url:
        assert main.run(["doctor", "--server", url, "--model", "served", "-q"]) == 4
        said = capsys.readouterr()
        assert said.out.startswith("missing   passes")
        assert "\x1b" not in said.out + said.err
        arguments = ["doctor", "--for", "eval", "--folder", str(tmp_path), "--server", url, "--model", "served", "--json"]
        assert main.run(arguments) == 4
        checks = {finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]}
        assert {"python", "store", "server", "passes"} <= checks


@pytest.mark.parametrize(
    "arguments",
    [("--server", "http://127.0.0.1:9/v1"), ("--model", "served"), ("--profile", "paper")],
)
def test_options_that_belong_together(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", *arguments]) == 2
    capsys.readouterr()


def test_no_server_and_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--server", "http://127.0.0.1:9/v1", "--model", "m", "--json"]) == 4
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["check"], finding["level"]) == ("server", "missing")
    assert main.run(["doctor", "--server", "localhost:8000", "--model", "m"]) == 3


def test_without_transformers_both_passes_are_still_asked(served: Served) -> None:
    import subprocess
    import sys

    with serving(served()) as url:
        command = [sys.executable, "-c", WITHOUT_TORCH, "doctor", "--server", url, "--model", "served", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=7200, check=False)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, done.stderr
    assert [of(check, findings)[0]["level"] for check in ("passes", "prompt")] == ["ok", "warning"]


def test_every_known_difference_is_one(folder: str) -> None:
    local, mine = prompt.Rendering(PAPER, probes(PAPER)), encoder(folder)
    unseen = [d.description for family in prompt.FAMILIES for d in family if d.change(local).ids(mine) == local.ids(mine)]
    assert all("tokenised" in said for said in unseen), "a token a byte leaves nothing else that could go unseen"


def test_collapsed() -> None:
    check: Callable[..., Any] = prompt.collapsed
    assert check((1, 9, 9, 9, 2, 2, 9), 9) == ((1, 9, 2, 2, 9), (3, 1))
    assert check((), 9) == ((), ())
