"""The detector `detectron2` with the real package: Faster R-CNN R50-FPN, R101-C4 and the bottom-up attention configuration.

Run by `make test-detectron2` in an environment of its own (its name keeps it out of `make test`). Weights are random, drawn
tame enough that boxes are finite and differ; there are no trained ones here. What the network computes is detectron2's affair:
checked is what the adapter makes of it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shims  # noqa: F401
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes
from PIL import Image
from safetensors.torch import save_file

from cos_core.detectors import detectron2 as adapter
from cos_core.detectors.detectron2 import FasterRcnn
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.manifest import canonical

PHOTO = Path(__file__).parent.parent / "golden" / "photos" / "coffee.jpg"
FPN = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml"
SIZES = {FPN: 1024, C4: 2048, adapter.BOTTOM_UP: 2048}
SMALL = {"INPUT.MIN_SIZE_TEST": 96, "INPUT.MAX_SIZE_TEST": 180, "MODEL.RPN.POST_NMS_TOPK_TEST": 40}
"""Small pictures and few proposals: a C4 head takes a second for thirty boxes."""


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of weights for each configuration, each in another format."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {FPN: folder / "fpn.pth", C4: folder / "c4.safetensors", adapter.BOTTOM_UP: folder / "vg.pkl"}
    for name, path in paths.items():
        state = adapter.build(name, weights=adapter.RANDOM, overrides=SMALL, device="cpu").model.state_dict()
        for key, value in state.items():
            # As trained batch normalisation does: residual branches that do not double the scale, an input near 1.
            if key.endswith("conv3.norm.weight"):
                value *= 0.25
            elif key.endswith("stem.conv1.norm.weight"):
                value /= 60
            elif key.endswith(("cls_score.weight", "bbox_pred.weight", "objectness_logits.weight", "anchor_deltas.weight")):
                value *= 20
        if path.suffix == ".pth":
            torch.save({"model": state, "iteration": 7}, path)
        elif path.suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items()}, path)
        else:  # as the model zoo has them
            arrays = {key: value.numpy() for key, value in state.items()}
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=2))
    return paths


@pytest.fixture(scope="module", params=[FPN, C4, adapter.BOTTOM_UP])
def detector(request: pytest.FixtureRequest, weights: dict[str, Path]) -> FasterRcnn:
    return built(request.param, weights)


def built(name: str, weights: dict[str, Path], **options: Any) -> FasterRcnn:
    settings = {"config": name, "weights": str(weights[name]), "device": "cpu", "overrides": SMALL, **options}
    found: FasterRcnn = plug.load("detectors", "detectron2", **settings)
    return found


def maps_of(detector: FasterRcnn, photo: Image.Image) -> tuple[Any, dict[str, torch.Tensor]]:
    batch = detector.model.preprocess_image([{"image": detector.pixels(photo)}])
    with torch.no_grad():
        return batch, detector.model.backbone(batch.tensor)


def test_36_boxes_with_features_of_their_own(detector: FasterRcnn, photo: Image.Image) -> None:
    found = detector.detect(photo)
    size = detector.feature_size
    assert size in SIZES.values()
    assert found.features is not None
    assert found.features.shape == (36, size) == (len(found.boxes), size)
    assert found.features.dtype == np.float32
    assert np.isfinite(found.features).all()
    assert len({box.corners for box in found.boxes}) == 36
    assert all(box.frame == "image" for box in found.boxes)
    assert list(found.confidence) == sorted(found.confidence, reverse=True)
    assert 0 < found.confidence[-1] < found.confidence[0] <= 1
    assert len(np.unique(found.features.round(4), axis=0)) > 30
    # Pooled directly, by detectron2's own modules, from boxes in pixels of the resized picture.
    batch, maps = maps_of(detector, photo)
    height, width = batch.image_sizes[0]
    boxes = Boxes(torch.tensor([box.corners for box in found.boxes]) * torch.tensor([width, height, width, height]))
    heads = detector.model.roi_heads
    with torch.no_grad():
        if size == 1024:
            direct = heads.box_head(heads.box_pooler([maps[name] for name in ("p2", "p3", "p4", "p5")], [boxes]))
        else:
            cells = heads.res5(heads.pooler([maps["res4"]], [boxes]))
            assert cells.shape[2:] == ((14, 14) if heads.res5[0].conv2.dilation == (2, 2) else (7, 7))
            direct = cells.mean((2, 3))
    assert np.allclose(found.features, direct.numpy(), rtol=1e-3, atol=1e-3 * float(direct.abs().max()))


@pytest.mark.parametrize("name", [FPN, C4])
def test_boxes_are_detectron2_s_own_in_pixels_of_the_photograph(
    name: str, weights: dict[str, Path], photo: Image.Image
) -> None:
    """DefaultPredictor's path from file to boxes in original pixels, told to keep every box of every class."""
    keep_all = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": -1.0,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0,
        "TEST.DETECTIONS_PER_IMAGE": -1,
    }
    detector = built(name, weights, overrides={**SMALL, **keep_all}, least=1, most=20)
    found = detector.detect(photo)
    predictor = DefaultPredictor.__new__(DefaultPredictor)
    from detectron2.data import transforms

    least, most = detector.config.INPUT.MIN_SIZE_TEST, detector.config.INPUT.MAX_SIZE_TEST
    predictor.cfg, predictor.model, predictor.input_format = detector.config, detector.model, detector.config.INPUT.FORMAT
    predictor.aug = transforms.ResizeShortestEdge([least, least], most)
    everything = predictor(np.asarray(photo)[:, :, ::-1])["instances"]  # DefaultPredictor takes BGR
    theirs = everything.pred_boxes.tensor.double()
    assert everything.image_size == (photo.height, photo.width) == (400, 600)
    scale = torch.tensor([600, 400, 600, 400], dtype=torch.float64)
    mine = torch.tensor([box.corners for box in found.boxes], dtype=torch.float64) * scale
    distance = (mine[:, None] - theirs[None]).abs().amax(-1)
    nearest = distance.argmin(1)
    assert distance.min(1).values.max() < 0.01  # pixels
    assert torch.allclose(everything.scores[nearest].double(), torch.tensor(found.confidence, dtype=torch.float64), atol=1e-5)
    # The likeliest of all is the first.
    assert found.confidence[0] == pytest.approx(float(everything.scores.max()), abs=1e-6)


def test_the_picture_is_resized_as_detectron2_does(detector: FasterRcnn) -> None:
    from detectron2.data import transforms

    generator = np.random.default_rng(0)
    for width, height in ((600, 400), (97, 61), (61, 97), (1, 1), (3, 400), (300, 17), (96, 96)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        raster = np.asarray(image)[:, :, ::-1]
        theirs = transforms.ResizeShortestEdge([96, 96], 180).get_transform(raster).apply_image(np.ascontiguousarray(raster))
        assert np.array_equal(detector.pixels(image).numpy().transpose(1, 2, 0), theirs.astype(np.float32))


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_channels_reach_the_network_in_the_configured_order(order: str, weights: dict[str, Path]) -> None:
    seen: list[torch.Tensor] = []
    detector = built(FPN, weights, overrides={**SMALL, "INPUT.FORMAT": order})
    hook = detector.model.backbone.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    detector.detect(Image.new("RGB", (90, 60), (200, 100, 50)))
    hook.remove()
    assert detector.config.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    red, green, blue = 200, 100, 50
    expected = {"BGR": (blue, green, red), "RGB": (red, green, blue)}[order]
    assert seen[0][0, :, 5, 5].tolist() == pytest.approx(
        [v - m for v, m in zip(expected, (103.53, 116.28, 123.675), strict=True)]
    )


@pytest.mark.parametrize("size", [(1, 1), (97, 61), (3, 400), (20000, 9)])
def test_pictures_of_any_shape(weights: dict[str, Path], size: tuple[int, int]) -> None:
    detector = built(FPN, weights)
    found = detector.detect(Image.new("RGB", size, "teal"))
    assert all(box.frame == "image" for box in found.boxes)
    assert found.features is not None
    assert found.features.shape == (len(found.boxes), detector.feature_size)


def test_proposals_as_they_are(weights: dict[str, Path], photo: Image.Image) -> None:
    detector = built(C4, weights, boxes="proposals", least=1, most=60, nms=1.0, features=False)
    found = detector.detect(photo)
    batch, maps = maps_of(detector, photo)
    with torch.no_grad():
        proposals, _ = detector.model.proposal_generator(batch, maps, None)
    height, width = batch.image_sizes[0]
    theirs = proposals[0].proposal_boxes.tensor / torch.tensor([width, height, width, height])
    mine = torch.tensor([box.corners for box in found.boxes])
    assert (mine[:, None] - theirs[None]).abs().amax(-1).amin(1).max() < 1e-5


def test_suppression_gives_way_until_there_are_enough(weights: dict[str, Path], photo: Image.Image) -> None:
    options = {"nms": 0.0, "most": 60, "threshold": 0.0, "features": False}
    few, many = (built(FPN, weights, least=least, **options).detect(photo) for least in (1, 30))
    assert len(few.boxes) < 30 <= len(many.boxes)
    assert few.boxes[0] == many.boxes[0]
    overlaps = [a.iou(b) for i, a in enumerate(few.boxes) for b in few.boxes[:i]]
    assert max(overlaps, default=0) < 1e-6
    none = built(FPN, weights, least=0, threshold=1.0).detect(photo)
    assert none.boxes == ()
    assert none.features is not None
    assert none.features.shape == (0, 1024)


def test_boxes_only_for_the_mixed_mode(weights: dict[str, Path], photo: Image.Image) -> None:
    with_features, without = (built(FPN, weights, features=on) for on in (True, False))
    found = without.detect(photo)
    assert found.features is None
    assert without.feature_size == 0
    assert found.boxes == with_features.detect(photo).boxes
    assert without.settings != with_features.settings


def test_settings_change_with_what_changes_boxes(weights: dict[str, Path]) -> None:
    marks = {
        str(sorted(plug.described(built(FPN, weights, **options)).items()))
        for options in ({}, {"most": 40}, {"overrides": {**SMALL, "INPUT.MIN_SIZE_TEST": 200}}, {"nms": 0.7})
    }
    assert len(marks) == 4
    described = plug.described(built(FPN, weights))
    assert described == plug.described(built(FPN, weights, device="auto" if not torch.cuda.is_available() else "cuda"))
    assert described["plugin"] == "detectron2"
    assert canonical(described)


class TestRefusals:
    def test_weights_of_another_network(self, weights: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"do not fit the configuration: size mismatch for roi_heads"):
            adapter.build(C4, weights=str(weights[FPN]), device="cpu")
        state = adapter.read_weights(weights[FPN])
        del state["backbone.fpn_lateral2.weight"]
        save_file(state, tmp_path / "short.safetensors")
        with pytest.raises(
            InputError, match=r"lacks 1 of the configured network's weights, first backbone.fpn_lateral2.weight"
        ):
            adapter.build(FPN, weights=str(tmp_path / "short.safetensors"), device="cpu")
        with pytest.raises(InputError, match=r"do not fit the configuration: size mismatch for roi_heads"):
            built(FPN, weights, overrides={**SMALL, "MODEL.ROI_HEADS.NUM_CLASSES": 7})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"config": "COCO-Detection/nothing.yaml"}, "nothing.yaml cannot be used"),
            ({"config": "COCO-Detection/retinanet_R_50_FPN_3x.yaml"}, "builds RetinaNet, and only Faster R-CNN"),
            ({"config": "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml"}, "builds CascadeROIHeads, and only Faster R-CNN"),
            ({"config": FPN, "overrides": {"MODEL.NOTHING": 1}}, "cannot be used"),
            ({"config": FPN, "overrides": {"INPUT.FORMAT": "L"}}, "reads pictures as L"),
            ({"config": FPN, "dilation": 2}, "only the res5 of a C4 head"),
        ],
    )
    def test_configurations(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            adapter.build(weights=adapter.RANDOM, device="cpu", **options)

    def test_yaml_that_would_run_code(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(f"MODEL:\n  WEIGHTS: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"mine.yaml cannot be used"):
            adapter.build(str(path), weights=adapter.RANDOM)
        assert not (tmp_path / "ran").exists()


def test_lxmert_on_its_regions(weights: dict[str, Path], photo: Image.Image, tmp_path: Path) -> None:
    """The paper's route in one piece: Faster R-CNN's 36 regions, LXMERT, relevance, a region of interest."""
    from tiny_lxmert import make_checkpoint

    from cos_core.backbones import lxmert
    from cos_core.errors import MissingError
    from cos_core.relevance import roi
    from cos_core.types import Example

    checkpoint = str(make_checkpoint(tmp_path, visual_feat_dim=2048))
    backbone = lxmert.build(checkpoint, built(adapter.BOTTOM_UP, weights), device="cpu")
    questions = [
        Example(str(i), "test", "coffee.jpg", text, ("red",)) for i, text in enumerate(("what is it?", "what colour?"))
    ]
    ((first, second),) = backbone.relevance([(photo, questions)])
    for found in (first, second):
        assert found.regions is not None
        assert found.regions.scores is not None
        assert len(found.regions.scores) == 36
        assert max(found.regions.scores) > 0
        assert roi.from_regions(found.regions, backbone.roi).box is not None
    with pytest.raises(MissingError, match="features of 1024 numbers, but this LXMERT needs 2048"):
        lxmert.build(checkpoint, built(FPN, weights), device="cpu")


def test_the_package_is_the_real_one() -> None:
    import detectron2
    import torchvision

    assert detectron2.__version__ == "0.6"
    assert build_model.__module__ == "detectron2.modeling.meta_arch.build"
    assert detector_postprocess.__module__ == "detectron2.modeling.postprocessing"
    assert torchvision.extension._has_ops()
