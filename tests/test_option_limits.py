"""Every numeric option of every command at and beyond its limits: a sentence and code 2 or 3, at once."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from bad.run import run

from cos_cli import main
from cos_cli.command import Command, all_commands
from cos_core.annotate import AnnotateConfig
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.infer import InferConfig
from cos_core.options import Option, check_number
from cos_core.runners import RunnerConfig
from cos_core.training.config import TrainConfig

EXTREMES = (
    "nan",
    "inf",
    "-inf",
    "1e300",
    "-1e300",
    "-1",
    str(10**30),
    str(2**70),
    "1e30",
    "9" * 5000,
    "0x10",
    "\u0664",
    "",
    " ",
)


def numbers() -> list[tuple[Command, Option]]:
    return [(c, p) for c in all_commands(main.TREE) for p in c.options if p.kind in (int, float) and p.names]


def test_every_number_has_bounds() -> None:
    open_ended = [
        f"{' '.join(c.words)} {p.names[0]}" for c, p in numbers() if p.values == 1 and (p.low is None or p.high is None)
    ]
    assert open_ended == []


def test_every_number_beyond_its_bounds_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """In process and without the rest of the command line: options are read before what is missing is found."""
    wrong = []
    leaves = {command.words: command.typer() for command, _ in numbers()}
    for command, parameter in numbers():
        leaf = leaves[command.words]
        context = leaf.make_context("cos", [], resilient_parsing=True)
        option = next(p for p in leaf.params if p.name == parameter.name)
        for text in EXTREMES:
            words = tuple([text] * parameter.values) if parameter.values > 1 else text
            try:
                value = option.process_value(context, words)
            except typer.BadParameter as error:
                if not str(error):
                    wrong.append((command.words, parameter.names[0], text, "no sentence"))
                continue
            except Exception as error:
                wrong.append((command.words, parameter.names[0], text, repr(error)))
                continue
            if parameter.values == 1 and not parameter.low <= value <= parameter.high:  # type: ignore[operator]
                wrong.append((command.words, parameter.names[0], text, value))
    assert wrong == []


def _train(**more: Any) -> Any:
    return TrainConfig("d", "i", "m", "o", **more)  # type: ignore[arg-type]


def _annotate(**more: Any) -> Any:
    return AnnotateConfig("d", "i", "m", "o", **more)  # type: ignore[arg-type]


def _infer(**more: Any) -> Any:
    return InferConfig("m", **more)


def _eval(**more: Any) -> Any:
    return EvalConfig("pope", "d", "p", **more)  # type: ignore[arg-type]


NAN, INF, HUGE = float("nan"), float("inf"), 10**30
CONFIGS = {
    _train: ("epochs", "batch_size", "global_batch", "max_length", "max_steps", "save_every", "lora", "processes",
             "region_tokens", "workers", "max_faults",
             "weight_decay", "learning_rate", "save_minutes", "warmup_ratio", "max_no_region",
             "mfu", "seed"),
    _annotate: ("threshold", "keep_mass", "extend", "finer", "last_layers", "batch_images", "limit", "max_failures", "seed"),
    _infer: ("batch_size", "max_new_tokens", "box_tokens", "limit", "max_failures", "seed", "kv_budget",
             "concurrency", "timeout"),
    _eval: ("judge_runs", "replicates", "seed", "timeout"),
    RunnerConfig: ("workers",),
}  # fmt: skip


@pytest.mark.parametrize(("make", "name"), [(make, name) for make, names in CONFIGS.items() for name in names])
def test_a_config_checks_its_own_bounds(make: Any, name: str) -> None:
    """Also for callers of the library: the sentence names the field."""
    for value in (-1, HUGE, NAN, INF, -INF):
        with pytest.raises(InputError, match=name.split("_")[-1]):
            make(**{name: value})


def test_bounds_are_named() -> None:
    with pytest.raises(InputError, match="x must lie between 1 and 5, got nan"):
        check_number("x", NAN, 1, 5)
    with pytest.raises(InputError) as told:
        check_number("x", 10**3000, 1, 5)
    assert len(str(told.value)) < 120
    check_number("x", None, 1, 5)


ADDRESSES = [
    "http://[::1", "http://\u2100.example", "ftp://host/v1", "host:8000", "http://", "http:///v1", "http://h:99999/v1", "http://h:x/v1",
    "http://a b/v1", "http://h/v1?key=hush", "http://h/v1#hush", "http://hush@h", "user:hush@h/v1",
    "http://user:hush@h/v1",  # pragma: allowlist secret
    "http://u:hush/w@h/v1", "http://h/\n", "http://h\x1b[2J/", "http://a..b/v1", f"http://{'x' * 70}/v1", "file:///etc/passwd",
    "http://h:0/v1", "//h/v1", "http://h/v1\u2028", "javascript:alert(1)", "http://u:hush@[::1",
]  # fmt: skip


@pytest.mark.parametrize("option", ["--server", "--judge-url"])
def test_addresses_that_are_none(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    scored = ["eval", "mmvet", "--data", "d", "--predictions", "p", "--out", "o"]
    asked = ["infer", "--model", "m", "--engine", "openai", "--data", "d", "--images", "i", "--out", "o"]
    for address in ADDRESSES:
        code = run([*(asked if option == "--server" else scored), option, address])
        told = capsys.readouterr()
        assert (code, len(told.err.strip().splitlines())) == (3, 1), (address, told.err)
        assert not {"hush", "\x1b"} & {word for word in ("hush", "\x1b") if word in told.err + told.out}


@pytest.mark.parametrize("key", ["sk-hush\n", "sk-hush\r\nX: y", "sk-hush\u0436", "sk-hush x", "sk-hush\x00", "\ud800sk-hush"])
def test_keys_that_no_header_takes(key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cos_core.engines import _served
    from cos_core.evaluate.judge import Endpoint
    from cos_core.web.client import Client

    for name in ("OPENAI_API_KEY", "COS_JUDGE_KEY"):
        monkeypatch.setattr("os.environ", {name: key})
        for sent in (
            _served.key if name == "OPENAI_API_KEY" else lambda: Endpoint("http://h", "m"),
            lambda: Client("http://h", key),
        ):
            with pytest.raises(InputError, match="key") as told:
                sent()
            assert "hush" not in str(told.value)
