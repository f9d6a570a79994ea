"""Settings of a run of the two passes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cos_core import options
from cos_core.dialogue.gate import gate_text
from cos_core.errors import InputError
from cos_core.files import picture_files
from cos_core.files.picture_files import PictureFolder
from cos_core.models.budget_options import BudgetOptions
from cos_core.options import ANSWER, CHECKS, INPUT, MODEL, OUTPUT, REGION, SERVER, SPEED, Files, option
from cos_core.runners import RunnerConfig
from cos_core.types import BoxDecode, BoxText, CropContent, OnBadBox
from cos_core.web.addresses import MAX_CONNECTIONS, MAX_TIMEOUT, MIN_TIMEOUT, checked_address


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringOptions(BudgetOptions):
    """How a model is run over questions: what `cos infer` and `cos eval --model` share; each field says what it is.

    `box_tokens`: three decimals take 29 tokens in LLaVA's tokenizer, six take 41, and a few words may stand around them.
    `kv_budget` bounds the keys and values of both passes; beside them stand the weights and the activations of a bounded
    number of positions (engines/hf.py), which it does not count. `timeout` is in seconds.
    """

    on_bad_box: OnBadBox = option(
        "full",
        "When the box cannot be used: the full picture, the centre crop, or no second pass.",
        REGION,
        aliases={"centre": "center"},
    )
    profile: str | None = options.profile_option(options.ANY_FAMILY)
    family: str | None = options.family_option()
    max_new_tokens: int = option(128, "Longest answer, in tokens.", ANSWER, low=1, high=options.TOKENS)
    box_tokens: int = option(48, "Longest first-pass text, in tokens.", REGION, low=1, high=options.TOKENS)
    box_decode: BoxDecode = option("free", "Let the first pass write anything, or nothing but a box.", REGION)
    crop: CropContent = option(
        "region",
        "What the second picture shows: the region; as a control of the same size black, noise, or (swap) the same box of "
        "another question's picture; or no second picture (absent).",
        REGION,
        before="region",
    )
    box_text: BoxText = option(
        "written",
        "Show the second pass the text of the box, or (none) the two pictures and the question alone.",
        REGION,
        before="written",
    )
    global_scale: float = option(
        1.0,
        "Blur the whole picture as if it had so many times its sides (0.25: a quarter); the region is cut from the original.",
        REGION,
        low=0.01,
        high=1,
        before=1.0,
    )
    gate: str | None = option(
        None,
        "Look twice only where it may pay: margin:X (the plain answer's margin is below X), area:LOW-HIGH (share of the "
        "picture that the box covers), or 'all' (always, and the plain answer is recorded as well).",
        REGION,
        parser=gate_text,
        metavar="margin:X|area:LOW-HIGH|all",
        before=None,
    )
    temperature: float = option(
        0.0, "Draw tokens at this temperature; 0 takes the likeliest.", ANSWER, low=0, high=100, before=0.0
    )
    top_p: float = option(
        1.0, "Draw only from the likeliest tokens that together reach this share.", ANSWER, low=0.001, high=1, before=1.0
    )
    samples: int = option(
        1,
        "Answers a question, each drawn with a seed of its own; eval gives their mean and vote.",
        ANSWER,
        low=1,
        high=1024,
        before=1,
    )
    batch_size: int = option(
        16,
        "Questions that go through the model together.",
        SPEED,
        low=1,
        high=options.BATCH,
        not_in_fingerprint="the other questions of a batch do not change an answer",
    )
    reuse: bool = option(
        True,
        "Continue the first pass's keys and values; share those of a picture.",
        SPEED,
        not_in_fingerprint="what is kept between passes; the answers are the same (cos infer --verify)",
    )
    kv_budget: float | None = option(
        None,
        "GiB for keys and values; a quarter of the free memory (GPU: 70 %) when not given.",
        SPEED,
        low=0.001,
        high=options.GIB,
        not_in_fingerprint="how much is kept between passes",
    )
    engine: str = option("hf", "What runs the model.", MODEL, parser=options.plugin_name, metavar="NAME", completes="engines")
    server: str | None = option(
        None,
        "With --engine openai: the server's address, up to /v1.",
        SERVER,
        not_in_fingerprint="the address of a server; what it serves is the model",
    )
    concurrency: int = option(
        8,
        "With --engine openai: requests under way at once.",
        SERVER,
        low=1,
        high=MAX_CONNECTIONS,
        not_in_fingerprint="how many requests are under way",
    )
    timeout: float = option(
        120.0,
        "Seconds that one request to a server or judge may take.",
        SERVER,
        low=MIN_TIMEOUT,
        high=MAX_TIMEOUT,
        not_in_fingerprint="how long a server may take",
    )
    retry_failed: bool = option(
        False,
        "Ask again what --out records as failed, whatever the reason.",
        CHECKS,
        not_in_fingerprint="which questions are asked again",
    )
    max_failures: int | None = options.max_failures_option(not_in_fingerprint="when a run is given up")
    seed: int = options.seed_option()
    scale: RunnerConfig = options.group(RunnerConfig, not_in_fingerprint="where the work is done")
    follow_links: bool = options.follow_links_option(not_in_fingerprint="where the pictures may be")
    device: str = options.device_option(
        "'auto' (every GPU, else the CPU), 'cpu', 'cuda:1', or several with commas: a model on each."
    )
    dtype: str = options.dtype_option(("float32", "bfloat16", "float16"), "Number format of the weights.")

    def __post_init__(self) -> None:
        options.check(self)
        if self.server is not None:
            checked_address(self.server)
        if self.temperature == 0 and (self.samples > 1 or self.top_p < 1):
            raise InputError(
                "at temperature 0 every answer is the likeliest one; give --temperature with --samples and --top-p"
            )
        if self.gate is not None and self.samples > 1:
            raise InputError("a gate decides about one answer a question; leave out --samples or --gate")
        if self.crop == "absent" and self.box_text == "none":
            raise InputError("--crop absent with --box-text none leaves nothing of the region; that is --roi none")


@dataclass(frozen=True, slots=True)
class InferConfig(AnsweringOptions):
    """Settings of one run: questions in a file or several (`data`, `images`, `out`), or one `image` with one `question`.

    `question` with `images` and no `data`: the same question about every picture of the folder. `roi`: a policy, "model" or
    "center" for short, or "relevance" (relevance_regions.py: no training needed).
    """

    model: str | Path = options.model_option(what="Vision-language checkpoint")
    out: Path | None = option(
        None,
        "JSONL file of predictions to write or to continue; - prints them.",
        OUTPUT,
        not_in_fingerprint="where the answers go",
    )
    data: Files | None = option(
        None,
        f"Many questions: {options.QUESTIONS}",
        INPUT,
        not_in_fingerprint="which questions are asked: each is compared with the one that its answer names",
    )
    images: Path | None = options.images_option(None)
    image: Path | None = option(None, "One picture.", INPUT, not_in_fingerprint="one picture, of which nothing is written")
    question: str | None = option(
        None, "The question on --image.", INPUT, not_in_fingerprint="compared with the one that an answer names"
    )
    roi: str = option(
        "model",
        "Where the region comes from: 'model' (two passes), 'none' (one), 'relevance' (untrained), 'center', 'full', ...",
        REGION,
        parser=options.roi_name,
        metavar="NAME",
        completes="roi",
    )
    limit: int | None = options.limit_option()
    columns: str | None = options.columns_option(
        not_in_fingerprint="which questions are asked: each is compared with the one that its answer names"
    )

    @property
    def pictures(self) -> PictureFolder | None:
        """The folder of pictures with what is thought of its links."""
        return picture_files.folder(self.images, self.follow_links)
