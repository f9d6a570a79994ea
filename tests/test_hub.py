"""One way to a checkpoint: folders, hub ids with revisions, the hub's cache, and a hub that answers (scripted, on loopback)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from tiny_llava import make_checkpoint
from two_passes import QUIET, make_config

from cos_core.dialogue.prompts import checkpoint_profile, load_profile
from cos_core.errors import InputError, MissingError
from cos_core.infer import stage as infer
from cos_core.models import checkpoint_info, hub

FIRST, SECOND = "1" * 40, "2" * 40
PROFILE = json.dumps(load_profile("repo-2024").to_json())


@pytest.fixture(autouse=True)
def _nothing_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_resolved", {})


def files(weights: bytes = b"weights") -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": weights, "cos_profile.json": PROFILE.encode(), "README.md": b"# A card"}


def cached(cache: Path, name: str, revisions: dict[str, dict[str, bytes]], refs: dict[str, str]) -> Path:
    """A repository as the hub's cache lays it out: blobs by their hash, links to them by revision, refs to revisions."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    for commit, contents in revisions.items():
        (folder / "snapshots" / commit).mkdir(parents=True)
        for file, data in contents.items():
            blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            (folder / "snapshots" / commit / file).symlink_to(os.path.relpath(blob, folder / "snapshots" / commit))
    for ref, commit in refs.items():
        (folder / "refs" / ref).write_text(commit)
    return folder / "snapshots"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in a folder of the test, offline; the library reads its environment once, when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_a_folder_and_the_miniature_are_what_they_are(tmp_path: Path):
    assert hub.resolve(tmp_path) == str(tmp_path) == hub.local(tmp_path)
    assert (Path(hub.resolve("miniature")) / "config.json").is_file()


def test_a_cached_model_brings_its_own_profile_and_fingerprint(cache: Path, tmp_path: Path):
    snapshots = cached(cache, "org/cos-7b", {FIRST: files()}, {"main": FIRST})
    folder = hub.resolve("org/cos-7b")
    assert Path(folder) == snapshots / FIRST
    assert checkpoint_profile(folder).name == "repo-2024"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in files().items():
        (copy / name).write_bytes(data)
    assert hub.fingerprint(folder) == hub.fingerprint(copy), "the fingerprint is of content, not of a name or a place"


def test_revisions_are_told_apart(cache: Path):
    snapshots = cached(cache, "org/cos-7b", {FIRST: files(), SECOND: files(b"other weights")}, {"main": SECOND, "v1": FIRST})
    assert Path(hub.resolve("org/cos-7b")) == snapshots / SECOND
    assert Path(hub.resolve("org/cos-7b@v1")) == snapshots / FIRST
    assert Path(hub.resolve(f"org/cos-7b@{FIRST}")) == snapshots / FIRST
    assert hub.fingerprint(hub.resolve("org/cos-7b")) != hub.fingerprint(hub.resolve("org/cos-7b@v1"))
    with pytest.raises(MissingError, match="org/cos-7b@v9"):
        hub.resolve("org/cos-7b@v9")


def test_one_process_never_sees_two_revisions(cache: Path):
    snapshots = cached(cache, "org/cos-7b", {FIRST: files(), SECOND: files(b"other weights")}, {"main": FIRST})
    before = hub.resolve("org/cos-7b")
    (snapshots.parent / "refs" / "main").write_text(SECOND)
    assert hub.resolve("org/cos-7b") == before == hub.local("org/cos-7b")


def test_the_annotators_record_is_read_from_the_cache(cache: Path):
    record = dict.fromkeys(("backbone", "detector", "region_tokens", "parent", "data", "steps"), 1)
    contents = {**files(), checkpoint_info.ANNOTATOR_FILE: json.dumps(record).encode()}
    cached(cache, "org/annotator", {FIRST: contents}, {"main": FIRST})
    assert checkpoint_info.annotator_provenance("org/annotator") == record


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


@pytest.mark.parametrize(
    ("contents", "lacking"),
    [
        ({"model.safetensors": b"w"}, "config.json"),
        ({"config.json": b"{}"}, "weights"),
        ({"config.json": b"{}", "pytorch_model.bin.index.json": b"{}"}, "weights"),
        ({"config.json": b"{}", "model.safetensors.index.json": INDEX, "model-1.safetensors": b"w"}, "model-2.safetensors"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"[1", "model-1.safetensors": b"w"}, "index"),
    ],
)
def test_a_download_that_was_cut_off_is_named(cache: Path, contents: dict[str, bytes], lacking: str):
    cached(cache, "org/torn", {FIRST: contents}, {"main": FIRST})
    with pytest.raises(MissingError, match=lacking):
        hub.resolve("org/torn")
    assert hub.local("org/torn") is None


def test_pickles_are_taken_only_by_readers_that_ask_for_them(cache: Path):
    contents = {"config.json": b"{}", "pytorch_model.bin": b"tensors"}
    snapshots = cached(cache, "org/original", {FIRST: contents}, {"main": FIRST})
    assert Path(hub.resolve("org/original", pickles=True)) == snapshots / FIRST


@pytest.mark.parametrize("name", ["no/folder/of/mine", "/not/here", "./here", "~/model", "a b", "org/..", "", "@main"])
def test_what_is_neither_a_folder_nor_a_hub_id(name: str, cache: Path):
    with pytest.raises(InputError, match="no hub id"):
        hub.resolve(name) if name else hub.resolve(Path("no such folder"))


def test_a_server_model_that_is_not_here_is_known_by_its_name(cache: Path):
    assert hub.local("cos-13b") is None
    assert hub.name_fingerprint("cos-13b") != hub.name_fingerprint("cos-7b")


def test_every_file_that_can_decide_an_answer_counts(tmp_path: Path):
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    before = hub.fingerprint(tmp_path)
    for name in ("tokenizer_config.json", "generation_config.json", "added_tokens.json", "merges.txt", "tokenizer.model"):
        (tmp_path / name).write_text("{}")
        after = hub.fingerprint(tmp_path)
        assert after != before, name
        before = after
    for name in ("manifest.json", "train_log.jsonl", "README.md", "loss.png", "cos_annotator.json", "chat_template.jinja"):
        (tmp_path / name).write_text("another run's")
        assert hub.fingerprint(tmp_path) == before, name


@pytest.fixture
def two_revisions(cache: Path, tmp_path: Path) -> Path:
    """A tiny model under a hub id in two revisions whose weights differ, `main` being the first; the place of `main`."""
    folder = make_checkpoint(tmp_path / "tiny")
    first = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    first["cos_profile.json"] = PROFILE.encode()
    weights = bytearray(first["model.safetensors"])
    weights[-2:] = b"\x01\x02"
    snapshots = cached(
        cache, "org/tiny", {FIRST: first, SECOND: {**first, "model.safetensors": bytes(weights)}}, {"main": FIRST}
    )
    return snapshots.parent / "refs" / "main"


@pytest.mark.parametrize("killed", [False, True])
def test_another_revision_never_continues_anothers_answers(
    two_revisions: Path, tmp_path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
):
    config = replace(make_config(tmp_path), model="org/tiny", engine="hf", max_new_tokens=2, box_tokens=2, batch_size=1)
    if killed:
        # As a run that ended in the middle leaves it: no manifest.
        monkeypatch.setattr(infer.manifest, "write", stop)
    with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
        infer.run(config, QUIET)
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert config.out is not None
    answers = config.out.read_bytes()
    assert {json.loads(line)["profile"] for line in answers.splitlines()} == {"repo-2024"}, "the checkpoint's own wording"
    two_revisions.write_text(SECOND)
    monkeypatch.setattr(hub, "_resolved", {})
    with pytest.raises(InputError) as told:
        infer.run(config, QUIET)
    first, second = (hub.fingerprint(hub.resolve(f"org/tiny@{commit}")) for commit in (FIRST, SECOND))
    assert f"model {first}, now {second}" in str(told.value)
    assert config.out.read_bytes() == answers
    infer.run(replace(config, model=f"org/tiny@{FIRST}"), QUIET)
    assert config.out.read_bytes() == answers, "the first revision by its name goes on where it was"


def stop(*_arguments: object) -> None:
    raise KeyboardInterrupt


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download asks: the list of a revision's files, and the files."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    contents: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/org/gated"):
            return self._say(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if not self.path.removeprefix("/api/models/").removeprefix("/").startswith("org/there"):
            return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": name, "size": len(d), "oid": "0" * 40} for name, d in self.contents.items()]
            return self._say(200, json.dumps(tree).encode(), {})
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.contents]
            return self._say(200, json.dumps({"id": "org/there", "sha": FIRST, "siblings": siblings}).encode(), {})
        data = self.contents[self.path.rpartition("/")[2]]
        return self._say(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": FIRST})

    def _say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_words: object) -> None: ...


@pytest.fixture
def served() -> Iterator[tuple[str, list[str]]]:
    handler = type(
        "Served", (Hub,), {"asked": [], "contents": {**files(), "modeling.py": b"run me", "pytorch_model.bin": b"pickle"}}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


SCRIPT = """
import sys
from cos_core.models import hub
try:
    print(hub.resolve(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


def resolved(name: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """What a process of its own makes of a name: the hub's library reads its environment when it is imported."""
    where = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", SCRIPT, name]
    return subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True, timeout=7200, check=True)


def test_a_download_takes_settings_and_safetensors_and_no_code(served: tuple[str, list[str]], tmp_path: Path):
    endpoint, asked = served
    first = resolved("org/there", endpoint, tmp_path)
    folder = Path(first.stdout.strip())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "cos_profile.json"}, first
    assert first.stderr == "", "no bars where nobody looks"
    assert not any(name in path for path in asked for name in ("modeling.py", "pytorch_model.bin"))
    again = resolved("org/there", "http://127.0.0.1:9", tmp_path)
    assert Path(again.stdout.strip()) == folder, "from the cache when the hub cannot be reached"


@pytest.mark.parametrize(("name", "said"), [("org/gated", "MissingError"), ("org/unknown", "InputError")])
def test_what_the_hub_refuses_is_a_sentence(served: tuple[str, list[str]], tmp_path: Path, name: str, said: str):
    answer = resolved(name, served[0], tmp_path).stdout
    assert answer.startswith(said)
    assert name in answer
    assert len(answer.splitlines()) == 1
