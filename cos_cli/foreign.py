"""Names of options in other tools, and the options of cos that they mean.

The tools are LLaVA's scripts, the Trainer, VLMEvalKit, lmms-eval, and vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable

from cos_core.options import Option

_DRAWN = "Each token is the likeliest one, or with --temperature and --top-p drawn; nothing else is to be set."
_CONFIG_SAYS = "It follows from the checkpoint's own files: cos model info M says what it is and what works with it."
_REMOTE = "cos runs no code of a checkpoint; a model that needs it is asked through a server, with --engine openai."
_SERVER = "A setting of the server: give it where the model is served (docs/howto/serve-qwen-vl.md)."
_SIZE = "Qwen-VL; others have --max-tiles or --longest-edge: cos model info M says which"
_VIDEO = "Pictures only: cos shows no videos."
_QUANTISED = "cos runs the weights in --dtype; a model that a server quantised is asked with --engine openai."

ROWS: tuple[tuple[str, str, str], ...] = (
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
    ("top-k num-beams do-sample repetition-penalty", "--temperature", _DRAWN),
    ("output-dir output output-path output-file out-dir save-path save-dir o", "--out", ""),
    ("num-return-sequences num-samples n-samples", "--samples", ""),
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
    ("max-num max-dynamic-patch max-num-tiles max-patches max-slices max-crops num-tiles max-partitions", "--max-tiles",
     "the whole picture apart"),
    ("total-pixels max-image-pixels", "--max-pixels", ""),
    ("min-image-pixels", "--min-pixels", ""),
    ("max-edge max-image-edge size-longest-edge", "--longest-edge", ""),
    ("image-size image-resolution resolution input-size resize dynamic-image-size", "--max-pixels", _SIZE),
    ("processor-kwargs image-processor mm-processor-kwargs", "--max-pixels", _SIZE),
    ("model-type model-family architecture hf-overrides model-arch", "--family",
     "of a served model; a folder's stands in its config.json"),
    ("model-args model-kwargs", "--model", "with the settings as options of their own"),
    ("tokenizer tokenizer-path processor processor-path tokenizer-mode config-format load-format use-fast", "", _CONFIG_SAYS),
    ("trust-remote-code allow-remote-code", "", _REMOTE),
    ("limit-mm-per-prompt limit-mm-per-prompt-image", "", "A server must allow two pictures a prompt: vllm serve "
     "--limit-mm-per-prompt '{\"image\": 2}'."),
    ("max-model-len gpu-memory-utilization served-model-name enforce-eager max-num-seqs enable-prefix-caching", "", _SERVER),
    ("use-vllm backend", "--engine", "openai, with --server, asks what vLLM serves"),
    ("use-cache", "--reuse --no-reuse", ""),
    ("gen-kwargs generation-kwargs", "--max-new-tokens", "answers are greedy"),
    ("judge judge-args", "--judge-model", ""),
    ("fps nframe nframes max-frames num-frames video video-path", "", _VIDEO),
    ("device-map", "--device", ""),
    ("work-dir", "--out", ""),
    ("api-nproc max-num-concurrent num-concurrent", "--concurrency", ""),
    ("reuse-aux rerun", "--retry-failed", ""),
    ("verbose v", "", "Progress is shown unless --quiet; --traceback shows where an error arose."),
)  # fmt: skip
"""(names elsewhere; options of cos, of which the first that the command has counts; a note). Without options: a sentence."""


def answer(known: Iterable[Option], name: str) -> str | None:
    """The sentence for an unknown option `name` (`--lr`, `output_dir`): the option of cos, or why there is none; else None."""
    spelled = {spelling for each in known for spelling in each.names}
    wanted = name.lstrip("-").replace("_", "-").lower()
    for names, ours, words in ROWS:
        if wanted not in names.split():
            continue
        if not ours:
            return words
        spelling = next((each for each in ours.split() if each in spelled), None)
        if spelling is not None:
            return f"Here it is {spelling}{f' ({words})' if words else ''}."
    same = f"--{wanted}"
    return f"Here it is {same}." if same in spelled else None
