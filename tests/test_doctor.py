"""The doctor tells the truth: about this machine, about a base install, and about broken packages laid out on disk.

What cannot be had here is faked at its outermost edge: a program called nvidia-smi, files of /proc and /sys, packages that do
not import. No function of the doctor is replaced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

from cos_cli import main
from cos_core.doctor import examine, machine, probe, software
from cos_core.doctor.finding import MachineFinding
from cos_core.files import filesystems

ROOT = Path(__file__).resolve().parent.parent


Found = dict[str, list[dict[str, str]]]


def told(task: str | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Found, str]:
    """(exit code, check -> findings, stderr) of `cos doctor --json`."""
    arguments = ["doctor", "--folder", str(folder), "--json", *(["--for", task] if task else [])]
    code = main.run(arguments)
    said = capsys.readouterr()
    found: Found = {}
    for finding in json.loads(said.out)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return code, found, said.err


def level(findings: list[MachineFinding]) -> list[str]:
    return [finding.level for finding in findings]


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = told(None, tmp_path, capsys)
    assert code == 0
    assert err == ""
    assert found["torch"][0]["said"].startswith(metadata.version("torch"))
    assert found["store"][0]["level"] == "ok"
    assert found["python"][0]["said"].startswith(".".join(map(str, sys.version_info[:3])))
    assert list(tmp_path.iterdir()) == [], "the trial store is gone again"


def test_lines_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "note", "warning", "missing") for line in lines)
    assert any(line.startswith("ok        python ") for line in lines)


@pytest.mark.parametrize("task", ["eval", "visualize"])
def test_tasks_without_a_model_need_no_torch(task: str, tmp_path: Path) -> None:
    done = without(tmp_path, "--for", task)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["missing"] == []


HIDDEN = ("torch", "transformers", "accelerate", "deepspeed", "__editable__", "_virtualenv", "distutils")


def without(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`cos doctor` in an environment that has every package but HIDDEN, nor their metadata."""
    venv.create(folder / "environment", symlinks=True)
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    for entry in (entry for place in sys.path if place.endswith("site-packages") for entry in Path(place).iterdir()):
        target = site / entry.name
        if not entry.name.lower().startswith(HIDDEN) and entry.suffix != ".pth" and not target.exists():
            target.symlink_to(entry)
    work = folder / "work"
    work.mkdir()
    command = [folder / "environment" / "bin" / "python", "-m", "cos_cli", "doctor", "--json", "--folder", work, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=7200, check=False)


def test_a_base_install(tmp_path: Path) -> None:
    done = without(tmp_path)
    assert done.returncode == 0, done.stderr
    found = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["torch"]["level"] == "note"
    assert set(found) >= {"python", "torch", "store", "disk", "threads"}


def test_training_on_a_base_install_is_4(tmp_path: Path) -> None:
    done = without(tmp_path, "--for", "train")
    assert done.returncode == 4
    assert {"torch", "transformers"} <= set(json.loads(done.stdout)["missing"])
    assert done.stderr.count("\n") == 1
    assert "train is not possible here yet" in done.stderr


def package(folder: Path, name: str, version: str, code: str, requires: str = "") -> None:
    """An installed distribution, as pip lays it out."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    line = f"Requires-Dist: {requires}\n" if requires else ""
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{line}")


@pytest.mark.slow
def test_a_broken_torchvision_stops_what_needs_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    package(site, "torchvision", "0.99.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    found = {f.check: f for f in examine("infer", tmp_path)}
    assert found["torchvision"].level == "missing"
    assert "nms does not exist" in found["torchvision"].said
    assert found["torch"].level == "ok"


def test_a_package_that_kills_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(
        tmp_path, "accelerate", "9.9", "import os, signal; print('noise', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = probe.ask(["ninja", "accelerate", "never"])
    assert "error" not in answers["ninja"]
    assert answers["accelerate"] == {"error": "ended the process with signal 11"}
    assert "never" not in answers


def test_a_package_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "accelerate", "9.9", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe.ask(["accelerate"], seconds=1.5) == {"accelerate": {"error": "did not finish in 2 s"}}


def test_absent_and_failing_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "deepspeed", "9.9", "raise ImportError('no such\\nthing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = probe.ask(["detectron3", "deepspeed"])
    assert answers == {"detectron3": {"absent": True}, "deepspeed": {"error": "ImportError: no such"}}
    assert level(list(software.libraries(None, answers))) == ["warning"]


SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) echo "NVIDIA A100-SXM4-80GB, 80000, 81920, 550.54.15"; echo "NVIDIA A100-SXM4-80GB, 1000, 81920, 550.54.15" ;;
  *) echo "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |" ;;
esac
"""


def test_gpus_as_nvidia_smi_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    names, found = machine.gpus(wanted=True)
    assert names == ["NVIDIA A100-SXM4-80GB"] * 2
    assert level(found) == ["ok", "warning"]
    assert found[0].said == "NVIDIA A100-SXM4-80GB, 78 GiB of 80 GiB free, driver 550.54.15"
    assert machine.driver_cuda() == "12.4"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus(wanted=False)[0] == []
    assert machine.driver_cuda() is None


def torch_for(cuda: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(folder, "torch", "2.99.0", "")
    (folder / "torch" / "version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda!r}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_torch_for_cpus_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_for(None, tmp_path, monkeypatch)
    assert level(list(software.torch(True, True, "12.4", {}))) == ["warning"]
    assert level(list(software.torch(True, False, None, {}))) == ["ok"]


def test_a_torch_that_is_newer_than_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_for("13.0", tmp_path, monkeypatch)
    found = list(software.torch(True, True, "12.4", {}))
    assert level(found) == ["missing"]
    assert "CUDA 13.0" in found[0].said
    assert level(list(software.torch(True, True, "13.1", {}))) == ["ok"]
    # Within a major version, an older driver is enough.
    (tmp_path / "torch" / "version.py").write_text("cuda = '12.8'\n")
    assert level(list(software.torch(True, True, "12.4", {}))) == ["ok"]


def test_a_gpu_that_torch_is_not_built_for() -> None:
    gpu = {"name": "A", "architecture": "sm_121", "free": 2**30, "total": 2**31, "works": False, "error": "no kernel image"}
    found = list(software.torch(True, True, None, {"torch": {"gpus": [gpu]}}))
    assert level(found)[-1] == "missing"
    assert "sm_121" in str(found[-1].todo)


def test_network_file_systems_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    for kind in ("nfs4", "lustre", "gpfs", "cifs", "fuse.sshfs", "beegfs"):
        mounts.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
        assert filesystems.network_type(tmp_path, mounts) == kind
    monkeypatch.setattr(filesystems.network_type, "__defaults__", (mounts,))
    assert level(list(machine.store(tmp_path, needed=True))) == ["missing"]
    assert level(list(machine.store(tmp_path, needed=False))) == ["warning"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_as_a_person(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert level(list(machine.store(tmp_path, needed=True))) == ["missing"]


def test_a_folder_that_cannot_be_written() -> None:
    found = list(machine.store(Path("/proc"), needed=True))
    assert level(found) == ["missing"]
    assert "no store can be kept in /proc" in found[0].said


def test_threads_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    for text, cores in (("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)):
        quota.write_text(text)
        assert machine._quota(quota) == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert machine.threads().level == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.threads().level == "ok"


def test_the_hub_offline_and_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert machine.hub(wanted=True).level == "warning"
    (tmp_path / "hub" / "models--llava-hf--llava-1.5-7b-hf").mkdir(parents=True)
    assert "llava-hf/llava-1.5-7b-hf" in machine.hub(wanted=True).said
    assert machine.hub(wanted=True).level == "note"


def declared(site: Path, *lines: str) -> None:
    """The metadata of an installed cos that requires these."""
    about = site / "cos_toolkit-9.9.dist-info"
    about.mkdir(parents=True)
    required = "".join(f"Requires-Dist: {line}\n" for line in lines)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cos-toolkit\nVersion: 9.9\n{required}")


DECLARED = (
    "numpy>=1.26",
    "transformers<6,>=5.20; extra == 'model'",
    "transformers<6,>=5.23; extra == 'train'",
    "deepspeed<0.20,>=0.19.8; extra == 'train'",
    "peft>=0.19; extra == 'train'",
    "mypy>=99; extra == 'dev'",
)
# installed -> level without a task, to infer, to train
OUTSIDE = [
    ({"numpy": "1.2.3"}, ("missing", "missing", "missing")),
    ({"transformers": "5.0.0"}, ("warning", "missing", "missing")),
    ({"transformers": "5.21.0"}, ("warning", "warning", "missing")),
    ({"transformers": "6.1.0"}, ("warning", "missing", "missing")),
    ({"deepspeed": "0.18.9"}, ("warning", "warning", "missing")),
    ({"deepspeed": "0.20.1"}, ("warning", "warning", "missing")),
    ({"peft": "0.18.1"}, ("warning", "warning", "missing")),
    ({"transformers": "5.23.0", "deepspeed": "0.19.8", "numpy": "1.26.0"}, ()),
    ({"transformers": "5.24.0.dev0"}, ()),
]


@pytest.mark.parametrize(("installed", "levels"), OUTSIDE)
def test_versions_outside_what_was_tested_are_named_for_the_task_that_needs_them(
    installed: dict[str, str], levels: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared(tmp_path, *DECLARED)
    for name, number in installed.items():
        package(tmp_path, name, number, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    for task, wanted in zip((None, "infer", "train"), levels or (None, None, None), strict=True):
        found = list(software.allowed(task))
        assert level(found) == ([] if wanted is None else [wanted])
        for finding in found:
            (name,) = installed
            assert finding.said.startswith(f"{name} {installed[name]} is too ")
            assert (finding.said.split(" is too ")[1].split()[0] == "new") == (installed[name][:3] in ("6.1", "0.2"))
            assert finding.todo.startswith(f"pip install '{name}")


def test_the_declared_versions_take_what_is_installed_here() -> None:
    """pyproject.toml itself, since an editable installation keeps the metadata of its day."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in software.RUNNING_EXTRAS for line in extras[extra])]
    for each in map(Requirement, lines):
        there = software.version(each.name)
        if each.name != "cos-toolkit" and there is not None:
            assert each.specifier.contains(there, prereleases=True), f"{each} does not take {there}"


def test_a_folder_that_is_not_there_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor", "--folder", str(tmp_path / "none")]) == 3
    assert "no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_training_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real libraries, imported in a process of their own."""
    code, found, _ = told("train", tmp_path, capsys)
    assert code == 0
    assert found["transformers"][0]["level"] == "ok"
    assert found["transformers"][0]["said"].startswith(metadata.version("transformers"))
    assert "deepspeed" not in found, "it imports"
