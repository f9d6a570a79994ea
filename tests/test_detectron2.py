"""The detector `detectron2` where the package is not there or broken, and what it does without it: weights, sizes, selection.

`make test-detectron2` runs the real package (tests/with_detectron2).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cos_core.detectors import detectron2
from cos_core.detectors.detectron2 import BoxSelection
from cos_core.errors import InputError, MissingError


class TestWithoutThePackage:
    @pytest.mark.skipif(find_spec("detectron2") is not None, reason="detectron2 is installed here")
    def test_absent(self) -> None:
        with pytest.raises(MissingError, match=r"needs the package detectron2; install torch .*pip install"):
            detectron2.build(weights="random")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("raise ImportError('libcudart.so.11: cannot open shared object file')", "does not work .libcudart"),
            ("from PIL import Image; Image.LINEAR", "does not work .*LINEAR"),
            ("raise RuntimeError('operator torchvision::nms does not exist')", "does not work .*torchvision::nms"),
            ("import fvcore_is_not_here", "lacks something .No module named 'fvcore_is_not_here'"),
            ("", "lacks something .No module named 'detectron2.config'"),
        ],
    )
    def test_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
        (tmp_path / "detectron2").mkdir()
        (tmp_path / "detectron2" / "__init__.py").write_text(content, encoding="utf-8")
        for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(MissingError, match=rf"detectron2 is installed, but {message}.*pip install"):
            detectron2.build(weights="random")
        sys.modules.pop("detectron2", None)

    @pytest.mark.slow
    @pytest.mark.skipif(find_spec("detectron2") is not None, reason="detectron2 is installed here")
    def test_the_command_line_says_it_in_one_sentence(self, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
        talk = '[{"from": "human", "value": "<image>\\nwhat?"}, {"from": "gpt", "value": "red"}]'
        (tmp_path / "data.json").write_text(f'[{{"id": "1", "image": "a.png", "conversations": {talk}}}]', encoding="utf-8")
        command = [sys.executable, "-m", "cos_cli", "annotate", "--model", "miniature", "--data", str(tmp_path / "data.json")]
        command += ["--images", str(tmp_path), "--out", str(tmp_path / "rois"), "--detector", "detectron2"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=7200, check=False, env={**os.environ, "COLUMNS": "400"}
        )
        assert done.returncode == 4, done.stderr
        assert done.stdout == ""
        assert "detectron2.git" in done.stderr
        assert "Traceback" not in done.stderr


class TestWeights:
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.int64)}  # noqa: RUF012

    def check(self, found: dict[str, torch.Tensor]) -> None:
        assert sorted(found) == ["a.weight", "b"]
        for name, value in self.arrays.items():
            assert np.array_equal(found[name].numpy(), value)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_the_model_zoo_s_pickles(self, tmp_path: Path, protocol: int, wrapped: bool) -> None:
        data: Any = {**self.arrays, "of another kind": np.array(["x"]), "scalar": np.float32(3), "note": "text"}
        data = {"model": data, "__author__": "Detectron2 Model Zoo"} if wrapped else data
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
        self.check(detectron2.read_weights(tmp_path / "a.pkl"))

    def test_names_that_old_numpy_wrote(self, tmp_path: Path) -> None:
        content = pickle.dumps(self.arrays, protocol=2).replace(b"numpy._core.", b"numpy.core.")
        assert b"numpy.core.multiarray" in content
        (tmp_path / "a.pkl").write_bytes(content)
        self.check(detectron2.read_weights(tmp_path / "a.pkl"))

    def test_torch_and_safetensors(self, tmp_path: Path) -> None:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in self.arrays.items()}
        torch.save({"model": tensors, "iteration": 3}, tmp_path / "a.pth")
        save_file(tensors, tmp_path / "a.safetensors")
        self.check(detectron2.read_weights(tmp_path / "a.pth"))
        self.check(detectron2.read_weights(tmp_path / "a.safetensors"))

    @pytest.mark.parametrize("name", ["a.pkl", "a.pth"])
    @pytest.mark.parametrize("where", ["value", "array", "whole"])
    def test_code_is_not_run(self, tmp_path: Path, name: str, where: str) -> None:
        class Trap:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        data: Any = {"value": {"a": Trap()}, "array": {"a": np.array([Trap()], object)}, "whole": Trap()}[where]
        if name == "a.pkl":
            (tmp_path / name).write_bytes(pickle.dumps(data))
        else:
            torch.save(data, tmp_path / name)
        with pytest.raises(InputError, match=rf"the weights .*{name} are broken, or hold more than arrays"):
            detectron2.read_weights(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04.", b"PK\x03\x04", pickle.dumps([1, 2])])
    def test_other_files(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"the weights .*{name} (are|cannot be read)"):
            detectron2.read_weights(tmp_path / name)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot be read: .*No such file"):
            detectron2.read_weights(tmp_path / "a.pth")


class TestSelection:
    scores = torch.tensor([0.9, 0.1, 0.6, 0.3, 0.25])
    """Best first: 0, 2, 3, 4, 1."""

    def chosen(self, rule: BoxSelection, left: dict[float, list[int]]) -> tuple[list[int], list[float]]:
        asked: list[float] = []

        def suppressed(iou: float) -> torch.Tensor:
            asked.append(round(iou, 6))
            return torch.tensor(left.get(asked[-1], [0, 2, 3, 4, 1]))

        return rule.selected(self.scores, suppressed).tolist(), asked

    def test_those_above_the_threshold(self) -> None:
        assert self.chosen(BoxSelection(0.3, least=1, most=9), {}) == ([0, 2, 3], [0.5])
        assert self.chosen(BoxSelection(0.3, least=1, most=2), {}) == ([0, 2], [0.5])

    def test_no_fewer_than_least_even_below_it(self) -> None:
        assert self.chosen(BoxSelection(0.95, least=4, most=9), {}) == ([0, 2, 3, 4], [0.5])
        assert self.chosen(BoxSelection(0.95, least=0, most=9), {}) == ([], [0.5])

    def test_suppression_gives_way_step_by_step(self) -> None:
        left = {0.5: [0], 0.6: [0, 3], 0.7: [0, 2, 3]}
        assert self.chosen(BoxSelection(0.0, least=3, most=3), left) == ([0, 2, 3], [0.5, 0.6, 0.7])
        nothing = {round(0.5 + k / 10, 1): [0] for k in range(5)}
        assert self.chosen(BoxSelection(0.0, least=4, most=4), nothing) == ([0, 2, 3, 4], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])

    def test_fewer_candidates_than_wanted(self) -> None:
        assert self.chosen(BoxSelection(0.0, nms=0.95, least=36, most=36), {}) == ([0, 2, 3, 4, 1], [0.95, 1.0])

    @pytest.mark.parametrize(
        "wrong", [{"nms": 1.5}, {"threshold": 2.0}, {"least": 5, "most": 4}, {"most": 0, "least": 0}, {"boxes": "all"}]
    )
    def test_impossible_settings(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            BoxSelection(**wrong)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 400), (1200, 800)),
        ((400, 600), (800, 1200)),
        ((1000, 400), (1333, 533)),  # 2000 x 800 shrunk to 1333 x 533.2
        ((800, 800), (800, 800)),
        ((20000, 9), (1333, 1)),
    ],
)
def test_a_picture_is_resized_to_its_shorter_side_within_a_limit(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert detectron2._resized(size, 800, 1333) == expected


def test_boxes_are_clipped_and_useless_ones_left_out() -> None:
    corners = torch.tensor(
        [[-5.0, 3, 50, 300], [5, 5, 5, 9], [1, 1, float("nan"), 9], [700, 1, 800, 9], [1, 2, 3, 4], [1, 2, 3, 4]]
    )
    scores = torch.tensor([0.5, 0.9, 0.9, 0.9, float("inf"), 0.1])
    found, kept = detectron2._usable(corners, scores, (200, 640))
    assert found.tolist() == [[0, 3, 50, 200], [1, 2, 3, 4]]
    assert kept.tolist() == pytest.approx([0.5, 0.1])
