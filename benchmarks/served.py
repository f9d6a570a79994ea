"""Requests under way: `cos infer` against a scripted server that takes 50 ms a request, beside the least time possible.

    python benchmarks/served.py [--questions 200] [--concurrency 32] [--milliseconds 50] [--runs 5] [--json]

Every question has two passes, so 200 questions are 400 requests; with 32 under way at once they take at least 400 / 32 x 50 ms.
The server is a process of its own and says when the first request came and when the last was answered, how many were under way
meanwhile (the mean over time), and how many second passes came before the last first pass. Pictures are 64x48, so that little
but the requests takes time. The run that other work disturbed least counts. Exit code 6: that took more than 1.25 times the
least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT = 1.25
BOX = "[0.250, 0.250, 0.750, 0.750]"


@dataclass(slots=True)
class Seen:
    """What the server saw; times in seconds."""

    first: float | None = None
    last: float = 0.0
    under_way: int = 0
    most: int = 0
    area: float = 0.0
    """Requests under way, summed over time."""
    changed: float = 0.0
    passes: list[int] = field(default_factory=list)
    """1 or 2 for each request, in the order in which they came."""

    def change(self, by: int) -> None:
        now = time.perf_counter()
        self.first = now if self.first is None else self.first
        self.area += self.under_way * (now - self.changed) if self.passes else 0.0
        self.changed = self.last = now
        self.under_way += by
        self.most = max(self.most, self.under_way)

    def told(self) -> dict[str, Any]:
        seconds = self.last - (self.first or 0.0)
        last_first_pass = max((i for i, number in enumerate(self.passes) if number == 1), default=0)
        return {
            "seconds": seconds,
            "requests": len(self.passes),
            "most": self.most,
            "mean": self.area / seconds if seconds else 0.0,
            "early_second_passes": sum(number == 2 for number in self.passes[:last_first_pass]),
        }


async def serve(delay: float) -> None:
    """HTTP/1.1 with connections that stay open; prints its port, and what it saw once its standard input ends."""
    seen = Seen()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            body = await reader.readexactly(length)
            reply = b'{"data": []}'
            if line.startswith(b"POST"):
                number = 1 if b'"assistant"' not in body else 2
                seen.change(1)
                seen.passes.append(number)
                await asyncio.sleep(delay)
                seen.change(-1)
                message = {"content": BOX if number == 1 else "red"}
                usage = {"prompt_tokens": 1, "completion_tokens": 1}
                reply = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps(seen.told()), flush=True)
    # Clients keep their connections open; nobody has more to ask.
    os._exit(0)


def measure(folder: Path, questions: int, concurrency: int, milliseconds: float) -> dict[str, Any]:
    """Runs the server and `cos infer`; what the server saw, with the least seconds and the ratio to them."""
    from PIL import Image

    from cos_core.infer import InferConfig, run
    from cos_core.interfaces import SilentReporter

    for i in range(questions // 4):
        Image.new("RGB", (64, 48), (i % 256, 90, 30)).save(folder / f"{i}.png")
    records = [
        {"question_id": str(i), "image": f"{i // 4}.png", "text": f"What colour is thing {i}?"} for i in range(questions)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, __file__, "--serve", str(milliseconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        config = InferConfig(
            model="scripted",
            engine="openai",
            server=f"http://127.0.0.1:{port}/v1",
            concurrency=concurrency,
            profile="paper",
            data=folder / "questions.jsonl",
            images=folder,
            out=folder / "answers.jsonl",
        )
        start = time.process_time()
        done = run(config, SilentReporter())
        cpu = time.process_time() - start
        words, _ = server.communicate("")
    if done.counts["ok"] != questions:
        raise SystemExit(f"only {done.counts['ok']} of {questions} questions were answered")
    seen: dict[str, Any] = json.loads(words)
    least = seen["requests"] / concurrency * milliseconds / 1000
    return {**seen, "least": least, "ratio": seen["seconds"] / least, "client_cpu_seconds": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--milliseconds", type=float, default=50.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve is not None:
        asyncio.run(serve(chosen.serve / 1000))
        return
    runs = []
    for _ in range(chosen.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), chosen.questions, chosen.concurrency, chosen.milliseconds))
    seen = min(runs, key=lambda run: run["ratio"])
    if chosen.json:
        print(json.dumps(seen))
    else:
        print(
            f"{seen['requests']} requests of {chosen.milliseconds:g} ms, {chosen.concurrency} at once: {seen['seconds']:.3f} s,"
        )
        print(f"{seen['ratio']:.2f} times the least ({seen['least']:.3f} s); limit {LIMIT}")
        print(f"all runs: {', '.join(format(run['ratio'], '.2f') for run in runs)}")
        print(f"under way: {seen['mean']:.1f} in the mean, {seen['most']} at most")
        print(f"second passes before the last first pass: {seen['early_second_passes']}")
        print(f"CPU seconds of the client: {seen['client_cpu_seconds']:.2f}")
    sys.exit(6 if seen["ratio"] > LIMIT else 0)


if __name__ == "__main__":
    main()
