"""Original LLaVA-1.5 checkpoints to the `transformers` layout, one weight file in memory at a time.

Read are the layouts in the wild: language weights and `model.mm_projector.*` in one or several `.bin` or safetensors files; a
separate `mm_projector.bin`, or a LoRA adapter with `non_lora_trainables.bin`, beside a base model; the vision tower as a CLIP
checkpoint of its own (`mm_vision_tower`), or inside the weights. As in the original, a tower of its own wins.
Pickles are read with `weights_only=True`: they can hold tensors, not code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cos_core import __version__
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import InputError
from cos_core.files import deciding, durable, manifest
from cos_core.files.durable import sync_folder
from cos_core.files.locks import FileLock
from cos_core.files.text import one_line
from cos_core.models import hub, layout, pretrained
from cos_core.models.checkpoint_files import settings
from cos_core.models.convert_config import ConvertConfig
from cos_core.models.layout import families, hub_name

_MOST_LAYERS = 1000
PROJECTOR = {"0": "linear_1", "2": "linear_2"}
_DROPPED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^(text_model|text_projection|visual_projection|logit_scale)")
_INSIDE = "model.vision_tower.vision_tower."


@dataclass(slots=True)
class _Plan:
    """The result of a conversion, and notes for the user."""

    config: dict[str, Any]
    language: Path
    tower: Path | None
    notes: list[str] = field(default_factory=list)


def convert(config: ConvertConfig) -> list[str]:
    """Writes the converted checkpoint to `config.out` (new or empty) and returns what there is to say, one sentence each.

    Raises InputError for a source that is not an original LLaVA-1.5 checkpoint, for weights that are missing, unknown or of
    another shape, and for a disk that is full; nothing is left behind then. LockedError: another process writes to `out`.
    A conversion of the same files that `out` already holds is left as it is, and reported.
    """
    config = _here(config)
    plan = _plan(config)
    work = manifest.started("convert", config, settings_fingerprint=_fingerprint(config, plan))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock.beside(config.out):
        if config.out.exists() and any(config.out.iterdir()):
            if not _holds_conversion(work.fingerprint, config.out):
                raise InputError(f"{config.out} is not empty; give a new directory")
            return [f"{config.out} holds this checkpoint already; nothing to do"]
        part = config.out.with_name(f".{config.out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with durable.library_folder(part):
                part.mkdir()
                weights = _write(config, plan, part)
                manifest.write(part / manifest.FILE, work.finish({"ok": weights}, results={"notes": plan.notes}))
                durable.flush_folder(part)
                if config.out.exists():
                    config.out.rmdir()
                part.rename(config.out)
                sync_folder(config.out.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return [*plan.notes, f"converted -> {config.out}"]


def _here(config: ConvertConfig) -> ConvertConfig:
    """The same with local folders, and the profile that the source's own name asks for."""

    def folder(path: Path | None) -> Path | None:
        return None if path is None else Path(hub.resolve(path, pickles=True))

    name = (config.source.resolve() if config.source.is_dir() else config.source).name
    profile = config.profile or ("repo-2024" if "cos" in name.lower() else "paper")
    source = folder(config.source) or config.source
    return replace(config, source=source, base=folder(config.base), vision_tower=folder(config.vision_tower), profile=profile)


def _fingerprint(config: ConvertConfig, plan: _Plan) -> str:
    """Of what is converted: the files' names and sizes, wherever they lie, and the wording."""
    read = dict.fromkeys(folder for folder in (config.source, plan.language, plan.tower) if folder is not None)
    files = [{path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()} for folder in read]
    by_content = {name: {"files": files} for name in ("source", "base", "vision_tower")}
    return manifest.fingerprint(deciding.settings(config, by_content))


def _holds_conversion(fingerprint: str, out: Path) -> bool:
    try:
        return manifest.read(out).fingerprint == fingerprint
    except InputError:
        return False


def _write(config: ConvertConfig, plan: _Plan, out: Path) -> int:
    """Writes all files and returns the number of weights. Raises InputError for a source that does not hold them."""
    try:
        return _assemble(config, plan, out)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if _from_writing(error, out):
            raise
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InputError(f"{config.source} cannot be converted: {why}") from None


def _from_writing(error: Exception, out: Path) -> bool:
    """Whether the disk refused what was written; an error of what was read names another file, or is a library's own."""
    if isinstance(error, OSError):
        return error.errno is not None and (error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(out))
    return durable.disk_error(error) is not None


def _assemble(config: ConvertConfig, plan: _Plan, out: Path) -> int:
    import transformers

    tokenizer = pretrained.tokenizer(str(plan.language))
    image = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "left"
    with pretrained.reading(config.source), torch.device("meta"):
        net = _config(plan, image, tokenizer)
        model = transformers.LlavaForConditionalGeneration(net)
    shapes = {hub_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    net.dtype = _weights(config, plan, out, shapes)
    net.architectures = [type(model).__name__]
    net.save_pretrained(out)
    transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(out)
    legacy = _json(plan.language / "tokenizer_config.json").get("legacy", True)
    profile = replace(load_profile(config.profile or "paper"), after_end="cut" if legacy is False else "spaced")
    plan.notes.append(f"profile {profile.name}, text after the end mark tokenised as {profile.after_end!r}")
    plan.notes += layout.complete(
        out,
        settings=net,
        tokenizer=tokenizer,
        image_processor=pretrained.image_processor(str(plan.tower or plan.language)),
        profile=profile,
        card=_card(config, plan),
    )
    return len(shapes)


def _card(config: ConvertConfig, plan: _Plan) -> layout.ModelCard:
    source = layout.plain_name(config.source)
    facts = {"vision tower": layout.plain_name(plan.tower) if plan.tower else "the one inside the checkpoint"}
    if plan.language != config.source:
        facts["language model"] = layout.plain_name(plan.language)
    origin = f"{source}, an original LLaVA-1.5 checkpoint, converted by `cos model convert` to the layout of `transformers`."
    # Of an original checkpoint, the wording alone says whether it learnt to look first.
    learnt = (config.profile or "").startswith("repo-2024")
    return layout.ModelCard(
        config.out.resolve().name, origin, source, {**facts, "written by": f"cos {__version__}"}, chain=learnt
    )


def _plan(config: ConvertConfig) -> _Plan:
    settings = _json(config.source / "config.json")
    if families.is_llava(settings) and "text_config" in settings:
        raise InputError(f"{config.source} is in the transformers layout already")
    if "mm_projector_type" not in settings and "mm_hidden_size" not in settings:
        named = f"{one_line(settings['model_type'], 60)!r}" if settings.get("model_type") else "a model of no named type"
        raise InputError(
            f"{config.source} is not an original LLaVA checkpoint, but {named}: its config.json names no mm_projector"
        )
    if settings.get("mm_projector_type") != "mlp2x_gelu":
        raise InputError(f"{config.source}: the projector {settings.get('mm_projector_type')!r} is not LLaVA-1.5's mlp2x_gelu")
    has_language = bool(_files(config.source))
    if not has_language and config.base is None:
        raise InputError(f"{config.source} holds a projector or an adapter only; name the model it belongs to with --base")
    plan = _Plan(settings, config.source if has_language else Path(config.base or ""), None)
    plan.tower = _tower(config, settings)
    if plan.tower is None:
        plan.notes.append("no vision tower of its own was found: the weights inside the checkpoint are used")
    return plan


def _tower(config: ConvertConfig, settings: Mapping[str, Any]) -> Path | None:
    if config.vision_tower is not None:
        if not (config.vision_tower / "config.json").is_file():
            raise InputError(f"the vision tower {config.vision_tower} has no config.json")
        return config.vision_tower
    name = str(settings.get("mm_vision_tower", ""))
    if not name:
        return None
    places = (Path(name), config.source / name, config.source.resolve().parent / name, Path(hub.local(name) or name))
    return next((p for p in places if (p / "config.json").is_file()), None)


def _config(plan: _Plan, image: int, tokenizer: Any) -> Any:
    import transformers

    keep = transformers.LlamaConfig().to_dict().keys() - {"architectures", "model_type", "dtype", "torch_dtype"}
    text = {k: v for k, v in plan.config.items() if k in keep and v is not None}
    text["vocab_size"] = max(int(plan.config["vocab_size"]), image + 1)
    if plan.tower is not None:
        vision = _json(plan.tower / "config.json")
        vision = vision.get("vision_config", vision)
    elif str(plan.config.get("mm_vision_tower")).endswith("clip-vit-large-patch14-336"):
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu"}
    else:
        raise InputError(f"the vision tower {plan.config.get('mm_vision_tower')!r} is not here; name its directory")
    keep = transformers.CLIPVisionConfig().to_dict().keys() - {"architectures", "model_type", "dtype", "torch_dtype"}
    for name, sides in ((plan.language, text), (plan.tower, vision)):
        layers = sides.get("num_hidden_layers", 1)
        if type(layers) is not int or not 1 <= layers <= _MOST_LAYERS:
            raise InputError(f"{name}: `num_hidden_layers` must be 1 to {_MOST_LAYERS}, got {one_line(repr(layers), 60)}")
    tower = transformers.CLIPVisionConfig(**{k: v for k, v in vision.items() if k in keep and v is not None})
    return transformers.LlavaConfig(
        vision_config=tower,
        text_config=transformers.LlamaConfig(**text),
        image_token_id=image,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=int(plan.config.get("mm_vision_select_layer", -2)),
        vision_feature_select_strategy="full" if plan.config.get("mm_vision_select_feature") == "cls_patch" else "default",
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )


def _weights(config: ConvertConfig, plan: _Plan, out: Path, shapes: Mapping[str, torch.Size]) -> torch.dtype:
    """Writes the weights, a shard a source file, and their index; returns the language model's number type.

    Raises InputError that names missing or unknown ones.
    """
    files: dict[str, str] = {}
    unknown: list[str] = []
    ignored = 0
    dtype = torch.float32
    delta = _Lora(config.source) if (config.source / "adapter_config.json").is_file() else None
    for number, shard in enumerate(_shards(config, plan), start=1):
        name = f"model-{number:05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for key, tensor in shard:
            if _INSIDE in key and plan.tower is not None:
                ignored += 1
                continue
            target = _target(key)
            if target is None:
                continue
            if target not in shapes:
                unknown.append(key)
                continue
            weight = _grown(delta.merged(key, tensor) if delta else tensor, shapes[target])
            if weight.shape != shapes[target]:
                raise InputError(f"the weight {key} has shape {tuple(tensor.shape)}, expected {tuple(shapes[target])}")
            tensors[target] = weight.contiguous()
            if target == hub_name("lm_head.weight"):
                dtype = weight.dtype
            # Later files win: a projector of its own stands for the one inside.
            files[target] = name
        save_file(tensors, out / name, metadata={"format": "pt"})
    missing = sorted(set(shapes) - set(files))
    if unknown or missing:
        what = [f"lacks {len(missing)} weights, first {missing[0]}"] if missing else []
        what += [f"holds {len(unknown)} unknown weights, first {unknown[0]}"] if unknown else []
        raise InputError(f"the checkpoint {config.source} {' and '.join(what)}")
    if ignored:
        plan.notes.append(f"{ignored} vision weights inside the checkpoint are ignored, as in the original; used: {plan.tower}")
    index = json.dumps({"metadata": {}, "weight_map": files}, indent=2, sort_keys=True)
    (out / "model.safetensors.index.json").write_text(index + "\n", encoding="utf-8")
    return dtype


def _shards(config: ConvertConfig, plan: _Plan) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    for path in _files(plan.language):
        yield _tensors(path)
    for name in ("mm_projector.bin", "non_lora_trainables.bin"):
        if (config.source / name).is_file():
            yield _tensors(config.source / name)
    if plan.tower is not None:
        for path in _files(plan.tower):
            yield ((f"tower:{key}", tensor) for key, tensor in _tensors(path))


def _target(key: str) -> str | None:
    """The hub's name of an original weight; None for buffers that are computed; unknown names as they are."""
    key = re.sub(r"^(base_model\.model\.|module\.)+", "", key)
    if key.startswith("tower:") or _INSIDE in key:
        key = key.removeprefix("tower:").removeprefix(_INSIDE)
        return None if _DROPPED.search(key) else hub_name("model.vision_tower." + key)
    if _DROPPED.search(key):
        return None
    if match := re.fullmatch(r"(?:model\.)?mm_projector\.(\d+)\.(weight|bias)", key):
        return hub_name(f"model.multi_modal_projector.{PROJECTOR.get(match[1], match[1])}.{match[2]}")
    return hub_name(key if key == "lm_head.weight" else key.replace("model.", "model.language_model.", 1))


def _grown(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A vocabulary matrix with rows for added tokens: copies of the first, as good as any.

    The row of `<image>` is never an answer (`vocabulary.unused_rows`): no engine of `cos` generates it, and no loss counts it.
    """
    missing = shape[0] - tensor.shape[0] if tensor.dim() == len(shape) == 2 and tensor.shape[1] == shape[1] else 0
    return torch.cat([tensor, tensor[:1].expand(missing, -1)]) if 0 < missing <= 64 else tensor


class _Lora:
    """Low-rank additions to a base model's weights: W + B A scale."""

    def __init__(self, directory: Path) -> None:
        settings = _json(directory / "adapter_config.json")
        self._scale = float(settings["lora_alpha"]) / float(settings["r"])
        path = next((p for p in (directory / f"adapter_model{e}" for e in (".safetensors", ".bin")) if p.is_file()), None)
        if path is None:
            raise InputError(f"{directory} has an adapter_config.json, but no adapter_model")
        self._parts = {re.sub(r"^(base_model\.model\.)+", "", key): tensor for key, tensor in _tensors(path)}

    def merged(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        stem = re.sub(r"^(base_model\.model\.)+", "", key).removesuffix(".weight")
        down, up = self._parts.get(f"{stem}.lora_A.weight"), self._parts.get(f"{stem}.lora_B.weight")
        if down is None or up is None:
            return tensor
        return (tensor.float() + self._scale * (up.float() @ down.float())).to(tensor.dtype)


def _files(directory: Path) -> list[Path]:
    """The weight files of a checkpoint: safetensors before pickles; adapters and projectors are not among them."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        paths = sorted(directory.glob(pattern))
        if paths:
            return paths
    return []


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    import pickle

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                yield key, file.get_tensor(key)
        return
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).partition("\n")[0] or "there is nothing in it"
        raise InputError(f"the weights {path} cannot be read safely: {why}") from None
    if not isinstance(weights, Mapping):
        raise InputError(f"the weights {path} are no mapping of names to tensors")
    yield from weights.items()


def _json(path: Path) -> dict[str, Any]:
    data = settings(path.parent, path.name)
    if data is None:
        raise InputError(f"{path} cannot be read: it is not there")
    return data
