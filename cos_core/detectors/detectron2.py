"""Faster R-CNN by detectron2 (CoS §3.2): boxes, confidences and a feature vector a box. The only place that knows detectron2.

Two heads are known: C4 (`Res5ROIHeads`: the mean over res5, 2048 numbers, what LXMERT reads) and FPN (`StandardROIHeads`: the
output of the box head, 1024 numbers; boxes only for other uses). A feature is always that of its own box, pooled again after
boxes were chosen.

Which boxes: every candidate has one score, that of its likeliest class; non-maximum suppression looks at all classes together;
when it leaves fewer than `least`, it is repeated at a threshold 0.1 higher, and so on, until all are left. Of what is left the
best that reach `threshold` count, but no fewer than `least` and no more than `most`. So with `least` = `most` = 36 there are 36
boxes, whatever their scores, as LXMERT was trained on. Departures of others: bottom-up attention (Anderson et al.) suppresses
within each class at 0.3 and keeps the unrefined proposals (`boxes="proposals"` keeps them too); the old example of transformers
pairs a refined box with the feature of its proposal.

`config="bottom-up-attention"` is the C4 R101 of the model zoo with what detectron2 can say of the Visual Genome model of
bottom-up attention, and res5 without its stride and dilated by 2 instead (`dilation`). What stock detectron2 has no words for:
Caffe's max-pooling (no padding, rounding up: features shift by half a cell), Caffe's boxes that count the last pixel in, and
the head for 400 attributes, whose weights are passed over. So weights converted from Caffe, where their names are detectron2's,
give features close to the published ones, not equal to them; where equality matters, read those (detector `precomputed`).

Weights come without code: safetensors, `.pth` through torch's `weights_only`, `.pkl` of the model zoo through a reader that
knows arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from cos_core.errors import InputError, MissingError
from cos_core.files.manifest import file_digest, fingerprint
from cos_core.files.text import first_line
from cos_core.geometry import Box
from cos_core.interfaces import Detector
from cos_core.models import devices
from cos_core.types import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = (
    "install torch and torchvision, then: pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git@02b5c4e2'"
)
RANDOM = "random"
"""In the place of a weights file: a network that was never trained, for tests."""

BOTTOM_UP = "bottom-up-attention"
_BOTTOM_UP_BASE = "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml"
_BOTTOM_UP_DILATION = 2
_BOTTOM_UP_OVERRIDES: Mapping[str, Any] = {
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
    "MODEL.RPN.CONV_DIMS": [512],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1600,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
}

BoxKind = Literal["refined", "proposals"]


@dataclass(frozen=True, slots=True)
class BoxSelection:
    """Which candidates become regions; see the module. `nms`: the first overlap (IoU) above which the lesser box goes.

    `boxes`: "refined" by the head's regression, or the "proposals" as they are. `features`: whether a vector a box is given.
    """

    threshold: float = 0.2
    nms: float = 0.5
    least: int = 36
    most: int = 36
    boxes: BoxKind = "refined"
    features: bool = True

    def __post_init__(self) -> None:
        if not (0.0 <= self.nms <= 1.0 and -1.0 <= self.threshold <= 1.0):
            raise InputError(f"nms must lie in [0, 1] and threshold in [-1, 1], got {self.nms} and {self.threshold}")
        if not 0 <= self.least <= self.most or self.most < 1:
            raise InputError(f"detectron2 needs 0 <= least <= most and most >= 1, got {self.least} and {self.most}")
        if self.boxes not in get_args(BoxKind):
            raise InputError(f"boxes are {' or '.join(get_args(BoxKind))}, got {self.boxes!r}")

    def selected(self, scores: torch.Tensor, suppressed: Callable[[float], torch.Tensor]) -> torch.Tensor:
        """Indices, best first. `suppressed(iou)`: indices that suppression leaves, best first, all of them at 1."""
        rungs = [self.nms + 0.1 * step for step in range(10) if self.nms + 0.1 * step < 1] + [1.0]
        candidates = torch.empty(0, dtype=torch.long)
        for iou in rungs:
            candidates = suppressed(iou)
            if len(candidates) >= self.least:
                break
        above = int((scores[candidates] >= self.threshold).sum())
        return candidates[: min(max(above, self.least), self.most)]


@dataclass(frozen=True, slots=True)
class FasterRcnn(Detector):
    """Made by `build`. `settings`: for fingerprints; `feature_size`: numbers a box, 0 when no features are given."""

    model: Any
    config: Any
    selection: BoxSelection
    settings: Mapping[str, Any]

    @property
    def feature_size(self) -> int:
        return int(self.model.roi_heads.box_predictor.cls_score.in_features) if self.selection.features else 0

    def detect(self, image: Image, path: str = "") -> Regions:
        """Boxes of the picture, the best first, with features as float32 (boxes, feature_size)."""
        from detectron2.structures import Boxes

        with torch.no_grad():
            batch = self.model.preprocess_image([{"image": self.pixels(image)}])
            maps = self.model.backbone(batch.tensor)
            corners, scores = self._candidates(batch, maps)
            corners, scores = _usable(corners, scores, batch.image_sizes[0])
            best = self.selection.selected(scores, lambda iou: _suppressed(corners, scores, iou))
            selected = corners[best]
            features = self.pooled(maps, [Boxes(selected)]).float().cpu().numpy() if self.selection.features else None
        height, width = batch.image_sizes[0]
        shares = (selected.double().cpu() / torch.tensor([width, height, width, height])).clamp(0, 1)
        boxes = tuple(Box(*row) for row in shares.tolist())
        return Regions(boxes, tuple(scores[best].double().cpu().tolist()), features)

    def pixels(self, image: Image) -> torch.Tensor:
        """(3, height, width), 0-255, resized and in the order of channels that the configuration says (BGR as a rule)."""
        from PIL import Image as Pillow

        least, most = int(self.config.INPUT.MIN_SIZE_TEST), int(self.config.INPUT.MAX_SIZE_TEST)
        raster = np.asarray(image.resize(_resized(image.size, least, most), Pillow.Resampling.BILINEAR))
        if self.config.INPUT.FORMAT == "BGR":
            raster = raster[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(raster.transpose(2, 0, 1)).astype(np.float32))

    def pooled(self, maps: Mapping[str, torch.Tensor], boxes: Any) -> torch.Tensor:
        """Features of `boxes` (one detectron2 Boxes for the one picture, in pixels of the resized picture): (n, size)."""
        heads = self.model.roi_heads
        if hasattr(heads, "res5"):
            return heads._shared_roi_transform([maps[name] for name in heads.in_features], boxes).mean((2, 3))
        features: torch.Tensor = heads.box_head(heads.box_pooler([maps[name] for name in heads.box_in_features], boxes))
        return features

    def _candidates(self, batch: Any, maps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 4) corners in pixels of the resized picture, and (n,) the probability of each one's likeliest class."""
        proposals, _ = self.model.proposal_generator(batch, maps, None)
        corners: torch.Tensor = proposals[0].proposal_boxes.tensor
        predictor = self.model.roi_heads.box_predictor
        predicted = predictor(self.pooled(maps, [proposals[0].proposal_boxes]))
        scores, classes = predictor.predict_probs(predicted, proposals)[0][:, :-1].max(1)
        if self.selection.boxes == "proposals":
            return corners, scores
        refined = predictor.predict_boxes(predicted, proposals)[0].unflatten(1, (-1, 4))  # one box, or one a class
        return refined[torch.arange(len(corners)), classes if refined.shape[1] > 1 else 0], scores


def build(
    config: str = BOTTOM_UP,
    weights: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    dilation: int | None = None,
    threshold: float = 0.2,
    nms: float | None = None,
    least: int = 36,
    most: int = 36,
    boxes: BoxKind = "refined",
    features: bool = True,
) -> FasterRcnn:
    """`config`: BOTTOM_UP, a YAML file, or a name of detectron2's model zoo (`COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml`).

    `weights`: a file (see the module) or RANDOM; the file that the configuration names is not fetched. `overrides`:
    detectron2's keys to values (`{"MODEL.ROI_HEADS.NUM_CLASSES": 1600}`). `dilation`: of res5 in a C4 head, 1 or 2; None: 2 for
    BOTTOM_UP, else 1. The rest: see Selection; `nms` None: the configuration's. Raises MissingError when detectron2 is not
    there or does not work, InputError for a configuration or weights that cannot be used.
    """
    _import()
    if weights is None:
        raise InputError(
            f"name the detector's weights: weights=FILE (.pth, .safetensors or .pkl), or weights={RANDOM} for a test"
        )
    cfg = _configuration(config, overrides or {})
    cfg.MODEL.DEVICE = str(devices.placement(device, "float32")[0])
    selection = BoxSelection(
        threshold, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST if nms is None else nms, least, most, boxes, features
    )
    model = _network(cfg)
    stretch = dilation or (_BOTTOM_UP_DILATION if config == BOTTOM_UP else 1)
    if stretch != 1:
        _dilate(model, stretch)
    if weights != RANDOM:
        _load_weights(model, Path(weights))
    described = {name: value for name, value in cfg.items() if name in ("MODEL", "INPUT")}
    described = _plain({**described, "MODEL": {**described["MODEL"], "DEVICE": ""}})
    settings = {"config": fingerprint(described), "dilation": stretch, **asdict(selection)}
    settings["weights"] = RANDOM if weights == RANDOM else file_digest(Path(weights))
    return FasterRcnn(model.eval().requires_grad_(False), cfg, selection, settings)


# --- the package, its configuration, its network ---


def _import() -> None:
    """Raises MissingError when detectron2 is not installed, or is and cannot be imported."""
    try:
        import detectron2.config
        import detectron2.model_zoo
        import detectron2.modeling  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise MissingError(f"the detector 'detectron2' needs the package detectron2; {INSTALL}") from None
        raise MissingError(f"detectron2 is installed, but lacks something ({first_line(error)}); {INSTALL}") from None
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise MissingError(f"detectron2 is installed, but does not work ({first_line(error)}); {INSTALL}") from None


def _configuration(name: str, overrides: Mapping[str, Any]) -> Any:
    """A detectron2 configuration for inference.

    A file is read by YAML's safe loader, unlike detectron2's own way; the model zoo's need the other, and are installed code.
    """
    import yaml
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    cfg = get_cfg()
    try:
        is_file = Path(name).is_file()
        file = name if is_file else model_zoo.get_config_file(_BOTTOM_UP_BASE if name == BOTTOM_UP else name)
        cfg.merge_from_file(file, allow_unsafe=not is_file)
        settings = {**(_BOTTOM_UP_OVERRIDES if name == BOTTOM_UP else {}), **overrides}
        cfg.merge_from_list([item for pair in settings.items() for item in pair])
    except (OSError, RuntimeError, AssertionError, KeyError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"the detectron2 configuration {name} cannot be used: {first_line(error)}") from None
    if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise InputError(f"the detectron2 configuration {name} reads pictures as {cfg.INPUT.FORMAT}, neither BGR nor RGB")
    cfg.MODEL.WEIGHTS = ""
    return cfg


def _network(cfg: Any) -> Any:
    """An untrained network, the same for the same configuration. Raises InputError unless it is a Faster R-CNN known here."""
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads

    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = build_model(cfg)
        except (AssertionError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"detectron2 cannot build the configured network: {first_line(error)}") from None
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, Res5ROIHeads | StandardROIHeads) or not hasattr(heads.box_predictor, "cls_score"):
        raise InputError(
            f"the detectron2 configuration builds {type(heads or model).__name__}, and only Faster R-CNN with a C4 or FPN head "
            "gives regions here"
        )
    return model


def _dilate(model: Any, dilation: int) -> None:
    """res5 of a C4 head without its stride, its 3x3 convolutions dilated instead, as Caffe's R-FCN-like res5 has it."""
    if dilation != 2 or not hasattr(model.roi_heads, "res5"):
        raise InputError(f"only the res5 of a C4 head can be dilated, and by 2, not by {dilation}")
    for block in model.roi_heads.res5:
        block.conv2.dilation = block.conv2.padding = (2, 2)
        for layer in (block.conv1, block.conv2, *([block.shortcut] if block.shortcut is not None else [])):
            layer.stride = (1, 1)


def _plain(value: Any) -> Any:
    """A configuration node as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# --- weights ---


def _load_weights(model: Any, path: Path) -> None:
    """Raises InputError when the file does not hold every weight of the network in its shape; more weights are passed over."""
    state = read_weights(path)
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"the weights {path} do not fit the configuration: {reason}") from None
    if missing:
        raise InputError(f"{path} lacks {len(missing)} of the configured network's weights, first {missing[0]}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name to tensor of a `.safetensors`, `.pth` or `.pkl` file, without running anything that stands in it.

    Raises InputError for a file that cannot be read, or that holds more than arrays.
    """
    from safetensors import SafetensorError

    try:
        data = _parsed(path)
    except (pickle.UnpicklingError, SafetensorError):
        raise InputError(f"the weights {path} are broken, or hold more than arrays, which could run code") from None
    except _BROKEN as error:
        raise InputError(f"the weights {path} cannot be read: {first_line(error)}") from None
    if isinstance(data, Mapping):
        data = data.get("model", data)
    if not isinstance(data, Mapping):
        raise InputError(f"the weights {path} are not a table of names and arrays")
    arrays = {
        str(k): torch.from_numpy(v) if isinstance(v, np.ndarray) and v.dtype.kind in "fiu" else v for k, v in data.items()
    }
    return {name: value for name, value in arrays.items() if isinstance(value, torch.Tensor)}


# What pickle and torch raise on a damaged file, besides UnpicklingError.
_BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, MemoryError)


def _parsed(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _Arrays(file, encoding="latin1").load()  # the encoding of files that Python 2 wrote
    return torch.load(path, map_location="cpu", weights_only=True)


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays in plain containers; every other name in a pickle is an error."""

    _NAMES = frozenset(
        {("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
        | {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
        | {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


# --- boxes ---


def _resized(size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """(width, height) with the shorter side `least`, or the longer side `most` where that is smaller, as detectron2 rounds."""
    width, height = size
    scale = least / min(width, height)
    wide, high = (scale * width, least) if height <= width else (least, scale * height)
    if max(wide, high) > most:
        shrink = most / max(wide, high)
        wide, high = wide * shrink, high * shrink
    return max(1, int(wide + 0.5)), max(1, int(high + 0.5))


def _usable(corners: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped to the resized picture (height, width); without those that have no area there or are not finite."""
    height, width = size
    limits = corners.new_tensor([width, height, width, height])
    clipped = torch.minimum(corners.clamp(min=0), limits)
    good = clipped.isfinite().all(1) & scores.isfinite() & (clipped[:, 2:] - clipped[:, :2] > 1e-2).all(1)
    return clipped[good], scores[good]


def _suppressed(corners: torch.Tensor, scores: torch.Tensor, iou: float) -> torch.Tensor:
    from detectron2.layers import nms

    order: torch.Tensor = scores.argsort(descending=True, stable=True) if iou >= 1 else nms(corners, scores, iou)
    return order
