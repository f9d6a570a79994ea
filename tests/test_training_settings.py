"""The settings of training: the paper's defaults, the shipped files, what is refused, and the bill."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from training_world import (
    Ears,
    config,
    make_world,
    recipe,
    samples,
)

from cos_cli import main
from cos_core import annotate, training
from cos_core.annotate import AnnotateConfig
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import InputError, MissingError
from cos_core.files import plug
from cos_core.interfaces import SilentReporter
from cos_core.training import TrainConfig
from cos_core.training.dataset import TrainDataset


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_defaults_are_the_papers() -> None:
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"))
    assert (made.epochs, made.rate, made.warmup_ratio, made.weight_decay) == (1, 2e-5, 0.03, 0.0)
    assert (made.global_batch, made.max_length, made.extra_turns, made.train_projector) == (1024, 2048, False, False)
    assert made.accumulation(8) == 8


def test_adapters_have_a_learning_rate_of_their_own() -> None:
    """That of LLaVA's own LoRA recipe, unless one is given; a run's fingerprint holds the number."""
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"))
    adapters = replace(made, lora=8)
    assert (made.rate, adapters.rate, replace(adapters, learning_rate=2e-5).rate) == (2e-5, 2e-4, 2e-5)
    assert made.learnt(8) == replace(made, learning_rate=2e-5).learnt(8), "settings from before, with the number, are the same"
    assert adapters.learnt(8)["learning_rate"] == 2e-4
    assert "0.0002 (all weights: 2e-05)" in adapters.rate_said


def test_the_shipped_settings_are_settings() -> None:
    """The paper's file says what the defaults are; the released one names where the two differ."""
    from cos_core.files import assets
    from cos_core.training.runtime import deepspeed_settings, zero_stage

    places = {"data": Path("d"), "images": Path("i"), "out": Path("o"), "store": Path("s")}
    made = {}
    for name in ("paper", "released"):
        settings = tomllib.loads(assets.template("config", f"train-{name}.toml").read_text())["train"]
        made[name] = TrainConfig(**places, policy=settings.pop("roi"), **settings)
    paper, released = made["paper"], made["released"]
    assert replace(paper, deepspeed=None) == TrainConfig(**places, model="llava-hf/llava-1.5-7b-hf")
    assert (released.global_batch, released.extra_turns, released.train_projector) == (128, True, True)
    assert load_profile(str(released.profile)).inst1.count("where")
    stages = {
        name: zero_stage(deepspeed_settings(replace(paper, deepspeed=name))) for name in ("zero2", "zero3", "zero3_offload")
    }
    assert stages == {"zero2": 2, "zero3": 3, "zero3_offload": 3}


def test_impossible_settings_are_refused(world: Path, tmp_path: Path) -> None:
    for wrong in (
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"warmup_ratio": 1.0},
        {"dtype": "float16"},
        {"device": "cuda:1"},
        {"workers": -1},
        {"weight_decay": -1.0},
        {"save_minutes": 0.0},
        {"qlora": True},
        {"max_faults": -1},
        {"seed": -1},
    ):
        with pytest.raises(InputError):
            config(world, tmp_path / "out", **wrong)
    with pytest.raises(InputError, match="not a multiple"):
        training.run(config(world, tmp_path / "out", global_batch=3), SilentReporter())
    with pytest.raises(InputError, match="give the store"):
        training.run(config(world, tmp_path / "out", store=None), SilentReporter())
    with pytest.raises(InputError, match="no folder of images"):
        training.run(config(world, tmp_path / "out", images=tmp_path / "nowhere"), SilentReporter())
    with pytest.raises(InputError, match="deepspeed is zero2, zero3, zero3_offload or a"):
        # Before the checkpoint is looked for.
        training.run(config(world, tmp_path / "zero9", deepspeed="zero9", model="nowhere"), SilentReporter())
    assert not (tmp_path / "zero9").exists()
    for package, wrong in (("wandb", {"report_to": "wandb"}), ("bitsandbytes", {"lora": 4, "qlora": True})):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(MissingError, match=f"'{package}'"):
                training.run(config(world, tmp_path / "out", **wrong), SilentReporter())
    with pytest.raises(MissingError, match="Liger's kernels run on a GPU") as error:
        # Before the data is read: it is not even there.
        training.run(config(world, tmp_path / "out", liger=True, data=tmp_path / "nowhere.json"), SilentReporter())
    assert error.value.exit_code == 4
    assert not (tmp_path / "out" / "run.json").exists(), "a run that never began takes no directory"
    with pytest.raises(InputError, match="cannot be trained on"):
        training.run(config(world, tmp_path / "short", max_length=8), SilentReporter())


def test_annotate_and_train_with_one_limit(world: Path, tmp_path: Path) -> None:
    """Three questions a picture: 4 questions are two pictures, and these alone are checked."""
    regions = tmp_path / "regions"
    limited = config(world, tmp_path / "out", store=regions, limit=4, max_no_region=0.0, max_faults=0, check_only=True)
    job = AnnotateConfig(limited.data, limited.images, limited.model, regions, policy="gold", limit=4, device="cpu")
    assert annotate.run(job, SilentReporter()).counts["ok"] == 6
    done = training.run(limited, SilentReporter())
    assert (done.counts["ok"], done.results["check"]) == (2, {"checked": 2, "faults": 0, "findings": 0})
    with pytest.raises(InputError, match="6 of 12 questions about pictures have no region"):
        training.run(replace(limited, limit=None), SilentReporter())
    with pytest.raises(InputError, match="3 of 9 questions about pictures have no region"):
        training.run(replace(limited, limit=7), SilentReporter())


def test_the_bill_needs_no_model(world: Path, tmp_path: Path) -> None:
    ears = Ears()
    made = config(world, tmp_path / "out", dry_run=True, max_steps=None, epochs=2, global_batch=4, deepspeed="zero3")
    bill = training.run(made, ears).results["bill"]
    assert bill["steps"] == 4, "5 samples, 4 a step, 2 epochs"
    assert bill["samples"] == 5
    assert bill["pictures"] == 8
    data = TrainDataset(samples(world, "from_single_question"), recipe(world))
    exact = sum(len(data[key].encoded) for key in range(5))
    assert bill["tokens"] == pytest.approx(exact, rel=0.02)
    assert bill["hours"] > 0
    assert "A100 at 40 %" in bill["hours_from"]
    assert not (tmp_path / "out").exists()
    two = training.run(replace(made, processes=2, batch_size=1), Ears()).results["bill"]
    assert two["steps"] == 4, "the same global batch on two devices"
    assert "2 x A100" in two["hours_from"]
    assert two["hours"] == pytest.approx(bill["hours"] / 2)


def test_the_probe_takes_real_steps(world: Path, tmp_path: Path) -> None:
    from cos_core.training import inputs, plan

    made = config(world, tmp_path / "out", dry_run=True)
    policy = plug.load("policies", made.rule)
    metadata = inputs.checkpoint_metadata(made, policy, inputs.start_checkpoint(made))
    with inputs.read(made, policy) as data:
        assert plan._probe(made, metadata, data, SilentReporter()) > 0
    assert not (tmp_path / "out").exists()


def test_importing_the_stage_loads_no_torch() -> None:
    code = "import sys, cos_core.training; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --config


@pytest.mark.parametrize("name", ["paper", "released"])
def test_the_shipped_files_are_read_by_the_command(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """What stands on the command line wins; the rest is the file's."""
    from cos_core.files import assets

    path = assets.template("config", f"train-{name}.toml")
    places = {"data": world / "data.json", "images": world / "images", "store": world / "store", "out": tmp_path / "out"}
    own = {**places, "model": world / "model", "device": "cpu", "check": "off", "config": path}
    words = [word for option, value in own.items() for word in (f"--{option}", str(value))]
    assert main.run(["train", *words, "--dry-run", "--json"]) == 0
    used = json.loads(capsys.readouterr().out)["config"]
    stated = tomllib.loads(path.read_text())["train"]
    stated["policy"] = stated.pop("roi")
    assert {key: used[key] for key in stated} == {**stated, "model": str(world / "model")}
    assert used["mfu"] == 0.4, "what neither says is the default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nlerning_rate = 1e-5", "no option 'lerning_rate'; did you mean 'learning_rate'?"),
        ("[train]\nbatch-sizes = 2", "did you mean 'batch_size'?"),
        ("[trian]\nseed = 1", "'trian' is no table of a command's options; did you mean 'train'?"),
        ("seed = 1", "'seed' is no table"),
        ("[annotate]\nseed = 1", r"has no table [train]"),
        ("[train]\nconfig = 'other.toml'", "no option 'config'"),
        ("[train", "cannot be read"),
    ],
)
def test_a_settings_file_that_means_nothing_is_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "own.toml").write_text(text)
    assert main.run(["train", "--config", str(tmp_path / "own.toml")]) == 3
    heard = capsys.readouterr().err
    assert said in heard
    assert "own.toml" in heard
    assert heard.count("\n") == 1


def test_values_of_a_file_are_checked_as_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.toml").write_text('[train]\ndata = "d"\nimages = "i"\nmodel = "m"\nout = "o"\nepochs = 0')
    assert main.run(["train", "--config", str(tmp_path / "own.toml")]) == 3
    assert "epochs" in capsys.readouterr().err
