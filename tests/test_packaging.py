"""The distributions: what is in them, and that the wheel works without the checkout (the demo from it: test_demo.py)."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import installed
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cos_core import __version__

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.environment(tmp_path_factory.mktemp("installed"))


def call(programs: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*installed.offline(), str(programs / "cos"), *arguments]
    environment = installed.variables(programs, folder)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=7200, check=False)


def test_what_the_wheel_holds(programs: Path) -> None:
    (wheel,) = (programs.parent.parent / "dist").iterdir()
    assert wheel.name == f"cos_toolkit-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {f"cos_core/_completions/{path.name}" for path in (ROOT / "completions").iterdir()}
    templates = [path.relative_to(ROOT / "templates") for path in (ROOT / "templates").rglob("*") if path.is_file()]
    needed |= {f"cos_core/_templates/{path}" for path in templates}
    needed |= {"cos_core/py.typed", "cos_cli/py.typed", "cos_core/_constraints.txt"}
    needed |= {"cos_core/miniature/checkpoint/config.json", "cos_core/miniature/checkpoint/model.safetensors"}
    assert needed <= names, sorted(needed - names)
    code = {str(path.relative_to(ROOT)) for package in ("cos_cli", "cos_core") for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or "__pycache__" in name]


def test_what_the_source_distribution_holds(tmp_path: Path) -> None:
    with tarfile.open(installed.build("sdist", tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Dockerfile",
        "Makefile",
        "constraints.txt",
    }
    needed |= {
        "completions/commands.tsv",
        "templates/jobs/train.slurm",
        "docs/install.md",
        "tests/test_packaging.py",
        ".ci/run",
    }
    assert needed <= names, sorted(needed - names)
    assert not [name for name in names if ".venv" in name or "__pycache__" in name]


def test_every_requirement_has_a_pin_that_fits() -> None:
    """One that lacks it is installed as the day will have it: what was tested is then not what is there."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    wanted = [Requirement(text) for part in (declared["dependencies"], *extras.values()) for text in part]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    exact = {canonicalize_name(name): version for name, version in pins.items()}
    assert len(exact) == len(pins) > 100
    for each in wanted:
        if each.name == "cos-toolkit":
            assert each.extras <= set(extras), each
        else:
            assert each.specifier.contains(exact[canonicalize_name(each.name)]), each


def test_it_runs_from_another_folder(programs: Path, tmp_path: Path) -> None:
    assert call(programs, tmp_path, "--version").stdout == f"cos {__version__}\n"
    where = subprocess.run([programs / "python", "-c", "import cos_core, cos_cli; print(cos_core.__file__, cos_cli.__file__)"],
                           cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    assert all(Path(path).is_relative_to(programs.parent) for path in where)
    shown = call(programs, tmp_path, "completion", "show", "fish")
    assert shown.stdout == (ROOT / "completions" / "cos.fish").read_text()
    assert call(programs, tmp_path, "__complete", "zsh", "eval", "po").stdout == "values\npope\n"
    assert call(programs, tmp_path, "config", "init", "train", "--out", "t.toml").returncode == 0
    assert call(programs, tmp_path, "config", "show", "train", "--config", "t.toml").returncode == 0
    listed = call(programs, tmp_path, "eval", "--list")
    assert "pope" in listed.stdout, listed.stderr


def test_the_doctor_tells_the_truth_about_a_bare_machine(programs: Path, tmp_path: Path) -> None:
    """No GPU is on the test machine."""
    done = call(programs, tmp_path, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["python"]["said"].endswith(str(programs / "python"))
    assert found["store"] == {"check": "store", "level": "ok", "said": "LMDB writes, reads and locks in .", "todo": None}
    if not list(Path("/proc/driver/nvidia/gpus").glob("*")):
        assert found["gpu"]["said"] == "no NVIDIA GPU"
