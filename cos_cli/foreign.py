"""Names of options in other tools (LLaVA's scripts, the Trainer, lmms-eval, vLLM), and the options of cos that they mean."""

from __future__ import annotations

from collections.abc import Iterable

from cos_core.options import Option

_GREEDY = "Answers are greedy: the most likely token each time, and nothing to set."
_QUANTISED = "cos runs the weights in --dtype; a model that a server quantised is asked with --engine openai."

_ROWS: tuple[tuple[str, str, str], ...] = (
    ("lr max-lr base-lr", "--learning-rate", ""),
    ("lr-scheduler-type lr-scheduler scheduler", "", "The learning rate falls along a cosine after --warmup-ratio."),
    ("warmup-steps num-warmup-steps", "--warmup-ratio", "a share of all steps"),
    ("num-train-epochs num-epochs n-epochs", "--epochs", ""),
    ("steps train-steps num-steps max-train-steps", "--max-steps", ""),
    ("per-device-train-batch-size per-device-batch-size micro-batch-size train-batch-size", "--batch-size", ""),
    ("per-device-eval-batch-size eval-batch-size bs batch", "--batch-size --batch-images", ""),
    ("batch-size", "--batch-images", ""),
    ("gradient-accumulation-steps accumulate-grad-batches grad-accum", "--global-batch", "samples an optimiser step; the "
     "accumulation follows"),
    ("model-max-length max-seq-len max-seq-length cutoff-len", "--max-length", ""),
    ("max-tokens max-length max-output-tokens max-gen-len", "--max-new-tokens", ""),
    ("temperature top-p top-k num-beams do-sample repetition-penalty", "", _GREEDY),
    ("output-dir output output-path output-file out-dir save-path save-dir o", "--out", ""),
    ("answers-file result-file results-file", "--predictions --out", ""),
    ("model-path model-name-or-path model-name model-id pretrained checkpoint ckpt model-base", "--model", ""),
    ("data-path dataset dataset-path data-dir question-file train-file questions input annotation-file", "--data", ""),
    ("image-folder image-dir image-root images-dir image-path img-dir", "--images", ""),
    ("image-file img picture", "--image", ""),
    ("prompt query instruction text", "--question --profile", ""),
    ("conv-template conv-mode conv-version chat-template system-prompt version", "--profile", "the wording of the dialogue"),
    ("tasks task benchmark benchmarks", "", "Benchmarks are named without an option: cos eval pope mme ..."),
    ("log-samples save-predictions", "", "What every question scored is always written into --out (scores.jsonl)."),
    ("load-4bit load-in-4bit bits", "--qlora", "with --lora RANK"),
    ("load-4bit load-in-4bit bits load-8bit load-in-8bit quantization", "", _QUANTISED),
    ("lora-r lora-rank lora-enable use-lora", "--lora", "the rank"),
    ("lora-alpha", "", "The adapters' scale is twice their rank (--lora), as in LLaVA's own recipe."),
    ("bf16 fp16 tf32 torch-dtype precision", "--dtype", ""),
    ("attn attn-implementation attention flash-attn use-flash-attn", "", "It follows from the model and the device."),
    ("dataloader-num-workers", "--num-workers --workers", ""),
    ("num-workers", "--workers", "how many hold a model"),
    ("workers", "--jobs", ""),
    ("jobs", "--workers", ""),
    ("num-gpus nproc-per-node num-processes tensor-parallel-size", "--processes --workers", ""),
    ("gpu gpus cuda gpu-id", "--device", ""),
    ("save-steps", "--save-every", ""),
    ("resume-from-checkpoint", "--resume", ""),
    ("resume continue", "", "The same command continues where a former one stopped."),
    ("overwrite overwrite-output-dir force", "", "What is in --out is continued; name a new one to begin anew."),
    ("max-samples num-samples max-eval-samples max-train-samples n-samples", "--limit", ""),
    ("tune-mm-mlp-adapter unfreeze-projector", "--train-projector", ""),
    ("policy roi-policy crop", "--roi", ""),
    ("url base-url api-base endpoint host", "--server --judge-url", ""),
    ("api-key key", "", "A key is taken from the environment: OPENAI_API_KEY, COS_JUDGE_KEY."),
    ("verbose v", "", "Progress is shown unless --quiet; --traceback shows where an error arose."),
)  # fmt: skip
"""(names elsewhere; options of cos, of which the first that the command has counts; a note). Without options: a sentence."""


def answer(known: Iterable[Option], name: str) -> str | None:
    """The sentence for an unknown option `name` (`--lr`, `output_dir`): the option of cos, or why there is none; else None."""
    spelled = {spelling for each in known for spelling in each.names}
    wanted = name.lstrip("-").replace("_", "-").lower()
    for names, ours, words in _ROWS:
        if wanted not in names.split():
            continue
        if not ours:
            return words
        spelling = next((each for each in ours.split() if each in spelled), None)
        if spelling is not None:
            return f"Here it is {spelling}{f' ({words})' if words else ''}."
    same = f"--{wanted}"
    return f"Here it is {same}." if same in spelled else None
