"""The miniature's tokenizer: bytes for any text, and one token for each phrase that its world is made of.

Sequences stay short (a box is four tokens, Inst.1 two), which is what makes training on two CPU cores possible. It is a real
fast tokenizer: anything can be encoded and decoded, phrases merely cost less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cos_core.dialogue.prompts import Profile
from cos_core.miniature.scenes import COLOURS, DIGITS, RELATIONS, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
QUESTION_PHRASES = (
    "What digit is on the",
    "What colour is the",
    "What shape is the",
    " object?",
    "Is the",
    "How many objects are there?",
    "Where is the",
    "Describe the image.",
    "?",
    ".",
)


def box_marks(profile: Profile) -> list[list[str]]:
    """For each raster line of the profile's box_step: its text as first, middle and last number of a box."""
    step = profile.box_step or 0.0625
    texts = [f"{i * step:.{profile.box_decimals}f}" for i in range(round(1 / step) + 1)]
    return [[f" [{t}," for t in texts], [f" {t}," for t in texts], [f" {t}]" for t in texts]]


def phrases(profile: Profile) -> list[str]:
    """Every phrase token, in the order of their ids."""
    entries = [profile.system + profile.user, profile.assistant, "\n", " "]
    for template in (profile.inst1, profile.inst1_all, profile.inst1_image, profile.inst2):
        before, after = template.split("{image}")
        entries.append(profile.user + before)
        for part in after.split("{question}"):
            # The last part is followed by the assistant's role in every prompt.
            entries += [part, part + profile.assistant]
    words = [*COLOURS, *SHAPES, *DIGITS, *RELATIONS, "the", "yes", "no"]
    entries += [*QUESTION_PHRASES, *(f" {word}" for word in words)]
    for marks in box_marks(profile):
        entries += marks
    return list(dict.fromkeys(f for f in entries if f))


def stand_ins(tokenizer: PreTrainedTokenizerFast, profile: Profile) -> dict[int, int]:
    """Ids of the phrases that only Chain-of-Spot dialogues hold -> ids of the plain dialogue's phrases in the same place."""
    entries: dict[int, int] = {}

    def stands(phrase: str, plain: str) -> None:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (phrase, plain)]
        if all(len(x) == 1 for x in ids):
            entries[ids[0][0]] = ids[1][0]

    for template in (profile.inst1, profile.inst1_all, profile.inst1_image, profile.inst2):
        before, after = template.split("{image}")
        stands(profile.user + before, profile.user)
        for part in after.split("{question}"):
            stands(part, "\n")
            stands(part + profile.assistant, profile.assistant)
    return entries


def make_tokenizer(profile: Profile) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, with SPECIAL and the phrases on top; `<s>` is put in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in phrases(profile)])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
