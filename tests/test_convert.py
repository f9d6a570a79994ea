"""Original LLaVA layouts converted: the original code's own ids, pixels, logits, crops and answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cos_core.dialogue.box_text import read_box
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.encoding import tokenize
from cos_core.dialogue.prompts import dialogue, load_profile, text_dialogue
from cos_core.engines.hf import HfEngine
from cos_core.errors import InputError
from cos_core.files.images import open_image
from cos_core.files.plug import load as plugin
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting
from cos_core.interfaces import Engine, Reply, Request
from cos_core.models import llava
from cos_core.models.convert import ConvertConfig, convert
from cos_core.types import Example

GOLDEN = Path(__file__).parent / "golden" / "original"
WEIGHTS, IMAGES = GOLDEN / "weights", GOLDEN / "images"
RELEASED = load_profile("repo-2024")


def expected(name: str) -> Any:
    return json.loads((GOLDEN / "expected" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def main(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("converted") / "main"
    convert(ConvertConfig(WEIGHTS / "llava-tiny", out, profile="repo-2024"))
    return out


@pytest.fixture(scope="module")
def loaded(main: Path) -> llava.Llava:
    return llava.load(main, device="cpu", dtype="float32")


def test_the_profile_is_kept_with_the_checkpoint(loaded: llava.Llava) -> None:
    assert loaded.profile == RELEASED
    assert (loaded.image_tokens, loaded.fill) == (16, (122, 116, 104))


@pytest.mark.parametrize("legacy", ["false", "true"])
def test_token_ids(loaded: llava.Llava, legacy: str) -> None:
    mode = "cut" if legacy == "false" else "spaced"
    for case in expected("a_tokenizer_image_token.json"):
        ids: list[int] = []
        for place, chunk in enumerate(case["prompt"].split("<image>")):
            ids += [-200] if place else []
            ids += [t for t, _, _ in tokenize(chunk, loaded.tokenizer, mode, first=place == 0)]  # type: ignore[arg-type]
        assert ids == case[f"ids_legacy_{legacy}"], case["prompt"]


def test_the_third_tokenisation_joins(loaded: llava.Llava) -> None:
    words = {
        mode: loaded.tokenizer.convert_ids_to_tokens(
            [t for t, _, _ in tokenize("a</s>USER", loaded.tokenizer, mode, first=False)]
        )
        for mode in ("spaced", "cut", "joined")
    }
    assert words == {
        "spaced": ["▁a", "</s>", "▁US", "ER"],
        "cut": ["▁a", "</s>", "US", "ER"],
        "joined": ["▁a", "</s>", "USER"],
    }


def test_pixels(loaded: llava.Llava) -> None:
    theirs = load_file(GOLDEN / "expected" / "b_pixels.safetensors")
    for case in expected("b_pixels.json"):
        ours = loaded.pixels([open_image(IMAGES, case["image"])])[0]
        key = next(k for k in theirs if k.startswith(case["image"].split(".")[0]) and k.endswith("rgb_pad"))
        assert torch.allclose(ours, theirs[key].view(ours.shape), atol=1e-6), case["image"]


def test_logits(loaded: llava.Llava) -> None:
    theirs = load_file(GOLDEN / "expected" / "c_logits.safetensors")
    for case in expected("c_logits.json"):
        whole = open_image(IMAGES, case["image"])
        images = [whole]
        if case.get("box"):
            box, _ = read_box(str(case["box"]), RELEASED)
            assert box is not None
            images.append(crop_region(whole, box, "canvas", (122, 116, 104)))
        ids = [i for t in case["input_ids"] for i in ([loaded.image_token_id] * 16 if t == -200 else [t])]
        with torch.inference_mode():
            features = loaded.image_features(loaded.pixels(images))
            embeddings = loaded.embed(torch.tensor([ids]), features)
            logits = loaded.model(inputs_embeds=embeddings).logits[0]
        assert len(ids) == case["seq_len"]
        last = theirs[f"{case['name']}.logits_last"]
        assert (logits[-1, : len(last)] - last).abs().max() <= 1e-4
        assert logits.argmax(-1).tolist() == case["argmax_all"]


class Forced(Engine):
    """The engine with each first pass's text replaced, as the recorded runs had it; keeps requests and replies."""

    name = "forced"

    def __init__(self, engine: HfEngine, text: str | None) -> None:
        self.engine, self.text = engine, text
        self.asked: list[Request] = []
        self.got: list[Reply] = []

    def generate(self, requests: list[Request]) -> list[Reply]:
        replies = self.engine.generate(requests)
        if self.text is not None and not self.asked:
            replies = [replace(replies[0], text=self.text.replace("</s>", "").strip())]
        self.asked += requests
        self.got += replies
        return replies


def two_passes(model: llava.Llava, case: dict[str, Any]) -> tuple[Forced, Any]:
    engine = Forced(HfEngine(model), case["forced_pass1"])
    setting = Setting(plugin("policies", "from_single_question"), model.profile, model.fill, max_new_tokens=128, box_tokens=128)
    example = Example(id=case["name"], dataset="golden", image=case["image"], question=case["question"])
    prediction = TwoPass(engine, setting).predict([(example, open_image(IMAGES, case["image"]))])[0]  # type: ignore[arg-type]
    return engine, prediction


def marked(model: llava.Llava, ids: tuple[int, ...]) -> list[int]:
    """Ids as the original writes them: one -200 a picture."""
    found: list[int] = []
    for i in ids:
        if i != model.image_token_id:
            found.append(i)
        elif not found or found[-1] != -200:
            found.append(-200)
    return found


@pytest.mark.parametrize("legacy", ["false", "true"])
@pytest.mark.parametrize("kind", ["forced", "free"])
def test_both_passes(loaded: llava.Llava, legacy: str, kind: str) -> None:
    profile = replace(RELEASED, after_end="cut" if legacy == "false" else "spaced")
    model = replace(loaded, encoder=replace(loaded.encoder, profile=profile))
    for case in expected(f"d_{kind}_legacy_{legacy}.json"):
        engine, prediction = two_passes(model, case)
        assert marked(model, model.encode(engine.asked[0].turns).ids) == case["pass1_input_ids"]
        assert marked(model, model.encode(engine.asked[1].turns).ids) == case["pass2_input_ids"]
        assert list(engine.got[1].ids) == case["pass2_output_ids"]
        assert prediction.answer == case["answer_line_text"].strip()
        assert list(engine.asked[1].images["roi"].size) == case["crop_image_size"] or case["fallback"]
        if kind == "forced":
            assert prediction.box_status == "ok"


DEPARTURES = {
    # text: (what the original does, what this project does)
    "[0.1, 0.2, 1.4, 1.3]": ("crops beyond the canvas, black there", "clamped"),
    "[0.5, 0.5, 0.501, 0.9]": ("a crop 0 pixels wide becomes a plain picture", "ok"),
    "": ("an empty turn is left out of the dialogue", "unparsable"),
}


def test_odd_first_passes(loaded: llava.Llava) -> None:
    for case in expected("d_odd_pass1_texts.json"):
        text = case["pass1_text_used"]
        box, status = read_box(text, RELEASED)
        if text in DEPARTURES:
            assert status == DEPARTURES[text][1]
            continue
        assert (box is None) == case["fallback"], text
        if box is not None:
            assert list(box.pixels(100, 100)) == case["crop_call"]["int_box"]
        engine, prediction = two_passes(loaded, case)
        assert list(engine.got[1].ids) == case["pass2_output_ids"], text
        assert prediction.answer == case["answer_line_text"].strip()


@pytest.mark.parametrize("layout", ["llava-tiny-sharded", "llava-tiny-with-tower", "llava-tiny-adapter"])
def test_every_layout_gives_the_same_weights(layout: str, main: Path, tmp_path: Path) -> None:
    base = WEIGHTS / "llava-tiny-base" if layout.endswith("adapter") else None
    notes = convert(ConvertConfig(WEIGHTS / layout, tmp_path / "out", base=base))
    one, other = weights(main), weights(tmp_path / "out")
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any("ignored, as in the original" in note for note in notes) == layout.endswith("tower")


def test_the_row_of_the_image_mark_takes_no_probability(main: Path, loaded: llava.Llava) -> None:
    """The original has no such row: its loss is the cross-entropy over the others, and the converted one's is equal to it."""
    from cos_core.training import loss

    spare = llava.load(main, device="cpu", dtype="float32")
    assert spare.unused_rows == (loaded.image_token_id,)
    loss.mask_rows(spare.model, spare.unused_rows)
    for case in expected("c_logits.json"):
        ids = torch.tensor([[t for t in case["input_ids"] if t != -200]])
        logits = loaded.model(input_ids=ids).logits[0, :-1, : loaded.image_token_id]
        original = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        made = spare.model(input_ids=ids, labels=ids).loss
        assert abs(float(made - original)) <= 1e-6
        assert float(loaded.model(input_ids=ids, labels=ids).loss - original) > 1e-5, "the row was worth nothing"
    spare.model.zero_grad()
    made.backward()
    row = spare.model.lm_head.weight.grad[loaded.image_token_id]
    assert torch.equal(row, torch.zeros_like(row))


@pytest.mark.parametrize("way", ["freely", "grammar"])
def test_what_is_no_number_is_that_questions_failure(loaded: llava.Llava, way: str) -> None:
    """And the image mark is never written, even where its row is the likeliest of all; the original writes `<unk>` there."""
    from copy import deepcopy

    from cos_core.dialogue.box_grammar import BoxGrammar

    turns = dialogue(RELEASED, "what?", chain=False)
    grammar = BoxGrammar(RELEASED) if way == "grammar" else None
    asked = [Request(turns, {"full": Image.new("RGB", (40, 30), colour)}, 4, grammar=grammar) for colour in ("red", "blue")]
    model = deepcopy(loaded)
    with torch.no_grad():
        model.model.lm_head.weight[0] = 30 * model.model.lm_head.weight[0]
        model.model.lm_head.weight[loaded.image_token_id] = model.model.lm_head.weight[0] * (1 + 1e-3)
    replies = HfEngine(model, kv_budget=2**26).generate(asked)
    assert all(reply.error is None and loaded.image_token_id not in reply.ids for reply in replies)
    with torch.no_grad():
        model.model.model.multi_modal_projector.linear_1.weight.fill_(float("nan"))
    plain = Request(text_dialogue([("what?", "")])[:1], {}, 4, grammar=grammar)
    replies = HfEngine(model, kv_budget=2**26).generate([*asked, plain])
    assert [reply.error is None for reply in replies] == [False, False, True]
    assert all("not a number" in str(reply.error) for reply in replies[:2])


def test_what_a_conversion_says(tmp_path: Path) -> None:
    """As a user meets it, in a process of its own: no library's warning is among it; done twice it has nothing to do."""
    command = [sys.executable, "-m", "cos_cli", "model", "convert", str(WEIGHTS / "llava-tiny"), "--out", "tiny"]
    said = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr.splitlines() for _ in range(2)
    ]
    assert said == [
        ["profile paper, text after the end mark tokenised as 'cut'", "converted -> tiny"],
        ["tiny holds this checkpoint already; nothing to do"],
    ]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return {name: load_file(directory / file)[name] for name, file in index.items()}


def test_another_form_of_the_tower(main: Path, tmp_path: Path) -> None:
    convert(ConvertConfig(WEIGHTS / "llava-tiny", tmp_path / "out", vision_tower=WEIGHTS / "clip-tiny-visiononly"))
    one, other = weights(main), weights(tmp_path / "out")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    image = Image.new("RGB", (50, 31), "red")
    pixels = [llava.load(d, device="cpu").pixels([image]) for d in (main, tmp_path / "out")]
    assert torch.equal(*pixels)


def test_a_lora_adapter_is_merged(main: Path, tmp_path: Path) -> None:
    source = tmp_path / "lora"
    source.mkdir()
    shutil.copy(WEIGHTS / "llava-tiny" / "config.json", source)
    (source / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    key = "model.layers.0.self_attn.q_proj"
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    save_file(
        {f"base_model.model.{key}.lora_A.weight": down, f"base_model.model.{key}.lora_B.weight": up},
        source / "adapter_model.safetensors",
    )
    projector = torch.load(WEIGHTS / "llava-tiny-adapter" / "mm_projector.bin", weights_only=True)
    torch.save({f"base_model.model.{k}": v for k, v in projector.items()}, source / "non_lora_trainables.bin")
    tower = WEIGHTS / "clip-tiny"
    convert(ConvertConfig(source, tmp_path / "out", base=WEIGHTS / "llava-tiny-base", vision_tower=tower))
    one, other = weights(main), weights(tmp_path / "out")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(other[name], one[name] + 2 * up @ down, atol=1e-5)
    assert all(torch.equal(tensor, other[k]) for k, tensor in one.items() if k != name)


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    for change, words in (
        (("lm_head.weight", None), "lacks 1 weights, first language_model.lm_head"),
        ((None, "model.extra.weight"), "model.extra"),
    ):
        source = tmp_path / words.split()[0]
        shutil.copytree(WEIGHTS / "llava-tiny", source)
        tensors = load_file(source / "model.safetensors")
        lost, more = change
        if lost:
            del tensors[lost]
        if more:
            tensors[more] = torch.zeros(2)
        (source / "model.safetensors").unlink()
        save_file(tensors, source / "model.safetensors")
        with pytest.raises(InputError, match=words):
            convert(ConvertConfig(source, tmp_path / "out", vision_tower=WEIGHTS / "clip-tiny"))
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.part").exists()


def test_what_is_no_original_checkpoint_is_one_sentence(main: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers layout already"):
        convert(ConvertConfig(main, tmp_path / "out"))
    with pytest.raises(InputError, match="--base"):
        convert(ConvertConfig(WEIGHTS / "llava-tiny-adapter", tmp_path / "out"))
    with pytest.raises(InputError, match=r"config\.json"):
        convert(ConvertConfig(tmp_path, tmp_path / "out"))
    source = tmp_path / "pickle"
    shutil.copytree(WEIGHTS / "llava-tiny", source)
    (source / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Path("code")}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read safely"):
        convert(ConvertConfig(source, tmp_path / "out", vision_tower=WEIGHTS / "clip-tiny"))
