"""The layers of the code, guarded three times: ruff's banned imports, every import read here, and a run without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: dict[int, tuple[str, ...]] = {
    0: ("__init__", "types", "geometry", "errors", "interfaces"),
    1: ("files", "options"),
    2: ("system", "web", "data", "dialogue", "models", "relevance", "scoring", "store"),
    3: ("detectors", "backbones", "policies", "engines", "benchmarks", "runners"),
    4: ("annotate", "training", "infer", "evaluate", "visualize", "miniature", "doctor"),
    5: ("demo", "suite", "evidence"),
}
"""What stands on which layer of cos_core: the first name after the package's. cos_cli is layer 6."""

LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
CLI = 6

WITH_TORCH = (
    "relevance.propagation",
    "relevance.coattention",
    "system.memory",
    "models.devices",
    "models.llava",
    "models.loaded",
    "models.general",
    "models.general_check",
    "models.general_encoder",
    "models.encoder",
    "models.pixels",
    "models.vocabulary",
    "models.convert",
    "models.pretrained",
    "models.processor",
    "models.shapes",
    "models.pixtral_processor",
    "models.model_size",
    "models.parts",
    "models.textual",
    "models.layout",
    "backbones",
    "engines.hf",
    "engines._features",
    "engines._prefix",
    "engines._batch",
    "engines._constrain",
    "engines._plain",
    "engines._probe",
    "engines._sampling",
    "detectors.detectron2",
    "training",
    "doctor.probe",
)
HOMES: dict[str, tuple[str, ...]] = {
    "torch": WITH_TORCH,
    "transformers": WITH_TORCH,
    "tokenizers": WITH_TORCH,
    "safetensors": WITH_TORCH,
    "accelerate": ("training",),
    "deepspeed": ("training",),
    "detectron2": ("detectors.detectron2",),
    "lmdb": ("store",),
    "matplotlib": ("visualize",),
    "ray": ("runners.ray",),
    "rich": (),
    "typer": (),
    "click": (),
}
"""Where in cos_core a heavy or bordering package may be imported. cos_cli may import rich and typer, and none of the others."""


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of the product."""
    files = [p for package in ("cos_core", "cos_cli") for p in sorted((ROOT / package).rglob("*.py"))]
    return [(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), p) for p in files]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full here"
            assert node.module is not None
            # `from package import name`: the name may be a module.
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def part(module: str) -> str:
    """`cos_core.engines.hf` -> `engines`; `cos_core` itself -> `__init__`."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in LAYER_OF else "__init__"


def layer(module: str) -> int:
    return CLI if module.startswith("cos_cli") else LAYER_OF[part(module)]


def inside(module: str, homes: tuple[str, ...]) -> bool:
    short = module.removeprefix("cos_core.")
    return any(short == home or short.startswith(home + ".") for home in homes)


def fault(module: str, imported: str) -> str | None:
    """What is wrong with `module` importing `imported`, or None."""
    top = imported.split(".")[0]
    if top in HOMES:
        allowed = top in ("rich", "typer") if module.startswith("cos_cli") else inside(module, HOMES[top])
        return None if allowed else f"may not import {top}"
    if top not in ("cos_core", "cos_cli"):
        return None
    mine, theirs = layer(module), layer(imported)
    if theirs > mine:
        return f"(layer {mine}) imports {imported} (layer {theirs}), which stands above it"
    if theirs == mine and mine in (3, 4) and part(module) != part(imported):
        return f"imports {imported}: adapters and stages do not know each other"
    if theirs == mine == 3 and not _helper(imported) and not module.endswith(part(module)):
        return f"imports {imported}: one adapter does not know another"
    return None


def _helper(imported: str) -> bool:
    """A module of shared helpers inside a folder of adapters starts with an underscore."""
    return imported.split(".")[2:3] != [] and imported.split(".")[2].startswith("_")


def test_every_module_has_a_layer() -> None:
    unknown = {m for m, _ in modules() if m.startswith("cos_core.") and m.split(".")[1] not in LAYER_OF}
    assert not unknown, f"give these a layer in LAYERS: {sorted(unknown)}"


def test_imports_point_downwards_and_heavy_packages_stay_home() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} {why}" for m, path in modules() for i, line in imports(path) if (why := fault(m, i))
    ]
    assert not faults, "\n".join(faults)


def circles(arrows: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of two and more names that reach one another along `arrows` (name -> names), each sorted."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen, ahead = set[str](), list(arrows[start])
        while ahead:
            if (name := ahead.pop()) not in seen:
                seen.add(name)
                ahead.extend(arrows.get(name, ()))
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in reached if a in reached[a]}
    return sorted(group for group in groups if len(group) > 1)


def owner(imported: str, known: frozenset[str]) -> str | None:
    """The module of ours that `imported` is or stands in."""
    while imported and imported not in known:
        imported = imported.rpartition(".")[0]
    return imported or None


def test_no_module_and_no_folder_imports_in_a_circle() -> None:
    """Imports inside functions count as well: a circle that is only put off is a circle."""
    files = modules()
    known = frozenset(name for name, _ in files) - {"cos_core", "cos_cli"}
    arrows: dict[str, set[str]] = {name: set() for name in known}
    folders: dict[str, set[str]] = {}
    for name, path in files:
        if name not in known:
            continue
        for imported, _ in imports(path):
            if (other := owner(imported, known)) is None or other == name:
                continue
            arrows[name].add(other)
            mine, theirs = (".".join(module.split(".")[:2]) for module in (name, other))
            if mine != theirs:
                folders.setdefault(mine, set()).add(theirs)
                folders.setdefault(theirs, set())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [("b", "c")]
    assert circles(arrows) == []
    assert circles(folders) == []


@pytest.mark.parametrize(
    ("module", "imported", "wrong"),
    [
        ("cos_core.types", "cos_core.errors.InputError", False),
        ("cos_core.geometry", "cos_core.dialogue.prompts", True),
        ("cos_core.infer", "cos_core.policies.none", False),
        ("cos_core.infer", "cos_core.evaluate.run", True),
        ("cos_core.policies.none", "cos_core.engines.hf", True),
        ("cos_core.policies.none", "cos_core.policies.gold", True),
        ("cos_core.policies.none", "cos_core.policies._boxes.middle", False),
        ("cos_core.training.run", "cos_core.training.dataset", False),
        ("cos_core.relevance.roi", "torch", True),
        ("cos_core.engines.hf", "torch.nn", False),
        ("cos_core.engines.openai", "torch", True),
        ("cos_core.store", "rich.console", True),
        ("cos_cli.main", "cos_core.infer.run", False),
        ("cos_cli.main", "torch", True),
        ("cos_core.infer", "cos_cli.console", True),
        ("cos_core.demo", "cos_core.infer.run", False),
        ("cos_core.infer", "cos_core.demo.run", True),
    ],
)
def test_the_guard_itself(module: str, imported: str, wrong: bool) -> None:
    assert (fault(module, imported) is not None) == wrong


def test_ruff_bans_what_this_file_bans() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert set(rules["flake8-tidy-imports"]["banned-api"]) == set(HOMES) - {"matplotlib"}
    assert "TID" in rules["select"]
    free = {p.removeprefix("cos_core/").removesuffix("/**").removesuffix(".py").replace("/", ".")
            for p, codes in rules["per-file-ignores"].items() if "TID251" in codes and p.startswith("cos_core/")}  # fmt: skip
    assert free == {home for homes in HOMES.values() for home in homes} - {"visualize"}


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "deepspeed", "torchvision"):
    sys.modules[name] = None
from cos_cli.main import run
code = run(sys.argv[1:])
sys.stdout.flush()
sys.exit(code)
"""


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=7200, check=False)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "annotate",
        "train",
        "infer",
        "eval",
        "evidence",
        "visualize",
        "visualize overlay",
        "visualize stats",
        "visualize report",
        "store",
        "store get",
        "store import",
        "model convert",
        "model info",
        "doctor",
        "completion",
    ],
)
def test_help_without_torch(command: str) -> None:
    done = without_torch(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert "  cos " in done.stdout


def test_scoring_recorded_predictions_without_torch() -> None:
    golden = ROOT / "tests" / "golden" / "pope"
    done = without_torch("eval", "pope", "--data", golden, "--predictions", golden / "predictions.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert '"accuracy"' in done.stdout


def test_statistics_of_boxes_without_torch(tmp_path: Path) -> None:
    source = tmp_path / "answers.jsonl"
    line = '{{"example_id": "{}", "answer": "red", "box": [0.1, 0.2, 0.5, 0.6], "box_status": "ok"}}\n'
    source.write_text("".join(line.format(i) for i in range(3)), encoding="utf-8")
    done = without_torch("visualize", "stats", source, "--out", tmp_path / "boxes")
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "boxes").iterdir())


def test_a_stored_region_is_drawn_without_torch(tmp_path: Path) -> None:
    from PIL import Image

    from cos_core.geometry import Box
    from cos_core.store.annotations import Store
    from cos_core.types import Annotation

    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    with Store.create_or_resume(tmp_path / "rois", "f", {}) as store:
        store.commit([Annotation("a", Box(0.1, 0.2, 0.5, 0.7), 1.0, "p", "f", image="photo.png")], {"a": [[0.0, 1.0]]})
    out = tmp_path / "o.png"
    done = without_torch("visualize", "overlay", "--store", tmp_path / "rois", "--images", tmp_path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.is_file()
    done = without_torch("store", "export", tmp_path / "rois", "--format", "coco", "--images", tmp_path, "--out", out)
    assert done.returncode == 0, done.stderr


def test_the_model_without_torch_is_one_sentence(tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    done = without_torch("infer", "--model", "miniature", "--image", picture, "--question", "What colour?")
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "[model]" in done.stderr
    assert "Traceback" not in done.stderr
