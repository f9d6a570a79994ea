"""`cos infer --roi none` beside what a user of plain `transformers` writes: a loop of `generate`, one question at a time.

    python benchmarks/peers.py [--questions 300] [--rounds 3]

The same checkpoint (the miniature), the same questions about drawn scenes (square, three a picture), greedy, 16 tokens at most,
float32, one thread. Each way is a process of its own, from start to end; they take turns. User and system time and peak memory
are the kernel's, of the whole process. "ms an answer" is what a further question costs: the difference to a run on a fifteenth
of the questions. All answers must be equal.

Ends with 6 when a further answer costs cos more than 1 / GOAL of what it costs the loop. Whole processes are shown beside it
and have no goal: both take about as long to import torch and transformers and to load, which bounds the ratio of 300 short
answers, however fast they are given; the last line says where.

lmms-eval itself is not installed here: its dependencies contradict ours. In an environment of its own:

    pip install lmms-eval decord 'filelock<4'
    lmms-eval --model llava_hf --model_args pretrained=FOLDER,device_map=cpu --tasks NAME --include_path TASKS --batch_size 1

TASKS holds a task's YAML over a parquet file with image, question and answer; `--keep FOLDER` leaves the pictures and questions
that are asked here. llava_hf refuses batches larger than 1, and an error ends with 0: look for the results. Its processor cuts
the centre out of a picture that is not square, where LLaVA (and cos) pads it: compare on square pictures only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cos_core.data.datasets import read_examples
from cos_core.files import assets
from cos_core.miniature.scenes import write_dataset

GOAL = 2.9
"""The loop's CPU time for a further answer over ours."""
TOKENS = 16
A_PICTURE = 3
FEW = 15

LOOP = """
import json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

checkpoint, questions, out, tokens = sys.argv[1:]
processor = AutoProcessor.from_pretrained(checkpoint)
model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
with open(questions) as file, open(out, "w") as answers:
    for row in map(json.loads, file):
        image = Image.open(Path(questions).parent / "images" / row["image"]).convert("RGB")
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        # The template writes the start token; the tokenizer is not to add another.
        inputs = processor(images=image, text=prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()
        answers.write(json.dumps({"id": row["id"], "answer": text}) + "\\n")
"""


class Cost(NamedTuple):
    """CPU seconds (user and system) of a process, and its peak memory in MiB."""

    seconds: float
    peak: float


def measured(command: list[str]) -> Cost:
    """Runs a process to its end. Raises RuntimeError with what it said when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{command[:4]} ended with {process.returncode}: {said.read().decode(errors='replace')[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(questions: Path, out: Path) -> dict[str, list[str]]:
    """What each way runs; answers go to `out`/<way>.jsonl."""
    checkpoint, images = str(assets.miniature_checkpoint()), str(questions.parent / "images")
    loop = [sys.executable, "-c", LOOP, checkpoint, str(questions), str(out / "loop.jsonl"), str(TOKENS)]
    cos = [sys.executable, "-m", "cos_cli", "infer", "--model", checkpoint, "--roi", "none", "--data", str(questions)]
    cos += ["--images", images, "--max-new-tokens", str(TOKENS), "--device", "cpu", "--quiet", "--out"]
    return {
        "loop": loop,
        "cos, batches of 1": [*cos, str(out / "cos1.jsonl"), "--batch-size", "1"],
        "cos": [*cos, str(out / "cos.jsonl")],
    }


def answers(path: Path) -> dict[str, str]:
    """Answer by question id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.get("id", row.get("example_id")): row["answer"] for row in rows}


def one_round(questions: Path) -> dict[str, Cost]:
    """The cost of each way on a file of questions. Ends the program when an answer differs."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        costs = {way: measured(command) for way, command in commands(questions, out).items()}
        plain = answers(out / "loop.jsonl")
        for file in ("cos.jsonl", "cos1.jsonl"):
            ours = answers(out / file)
            unequal = [key for key, answer in plain.items() if ours.get(key) != answer]
            if unequal or len(ours) != len(plain):
                key = unequal[0] if unequal else "?"
                sys.exit(f"{len(unequal)} of {len(plain)} answers differ, first {key}: {plain.get(key)!r}, {ours.get(key)!r}")
    return costs


def files(folder: Path, count: int) -> dict[int, Path]:
    """Question files by their number of questions: all of them, and a few; the pictures lie beside them."""
    scenes = write_dataset(folder, -(-count // A_PICTURE), seed=11, per_image=A_PICTURE)
    lines = [json.dumps(example.to_json()) + "\n" for example in read_examples(scenes)]
    made = {}
    for number in (count, max(1, count // FEW)):
        made[number] = folder / f"{number}.jsonl"
        made[number].write_text("".join(lines[:number]), encoding="utf-8")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="cos infer beside a plain loop of generate")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the pictures and questions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = files(options.keep or Path(scratch), options.questions)
        rounds = {number: [one_round(path) for _ in range(options.rounds)] for number, path in made.items()}
    many, few = made
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    print(f"{many} questions, {A_PICTURE} a scene, {platform.machine()}, {versions}, one thread; all answers equal")
    print(f"{options.rounds} rounds in turns, medians (least to most)")
    print(
        f"{'':18}{'CPU s':>24}{f'of {few} questions':>17}{'loop / this':>20}{'ms an answer':>14}{'loop / this':>13}{'MiB':>6}"
    )
    a_loop_answer = answer_ms(rounds[many], rounds[few], "loop", many - few)
    start = statistics.median(each["loop"].seconds for each in rounds[few]) - few * a_loop_answer / 1000
    for way in rounds[many][0]:
        seconds = [each[way].seconds for each in rounds[many]]
        short = statistics.median(each[way].seconds for each in rounds[few])
        whole = [each["loop"].seconds / each[way].seconds for each in rounds[many]]
        own = answer_ms(rounds[many], rounds[few], way, many - few)
        peak = max(each[way].peak for each in rounds[many])
        ratio = a_loop_answer / own
        print(f"{way:18}{spread(seconds):>24}{short:17.2f}{spread(whole):>20}{own:14.1f}{ratio:13.2f}{peak:6.0f}")
    most = statistics.median(each["loop"].seconds for each in rounds[many]) / start
    print(f"with answers for nothing a whole process could be {most:.2f}x as fast as the loop")
    print(f"goal {GOAL} a further answer: {'reached' if ratio >= GOAL else 'missed'}")
    return 0 if ratio >= GOAL else 6


def answer_ms(many: list[dict[str, Cost]], few: list[dict[str, Cost]], way: str, more: int) -> float:
    """CPU milliseconds of a further answer: `more` questions are between the two runs. At least a microsecond."""
    seconds = [statistics.median(each[way].seconds for each in rounds) for rounds in (many, few)]
    return max(1e-3, 1000 * (seconds[0] - seconds[1]) / max(1, more))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
