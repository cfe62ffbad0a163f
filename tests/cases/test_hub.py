"""Sources by name: the real client against a small hub on this machine, which is cut off, closed, or not there."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tiny_text
from huggingface_hub import constants
from published import SMALL, draw_network, save_diffusers, save_ltx2
from run import refused, run
from safetensors.numpy import save_file

from converters.component import HUGGING_FACE
from converters.formats import gemma
from converters.hub.choice import choose
from converters.hub.download import read_name
from omniforcing_jax.io.weights import read_config

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CUT = 12_000_000  # bytes after which a slow line stands still
QUERY = "transformer_blocks.0.attn1.to_q"


class Hub(ThreadingHTTPServer):
    """A hub with repositories from folders of this machine."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.log: list[tuple[str, str, str | None]] = []
        self.slow: set[str] = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self):
        """List the files whose content was asked for."""
        paths = [path for way, path, _ in self.log if way == "GET"]
        found = [re.fullmatch(r"/(?:cdn/[^/]+/[^/]+|[^/]+/[^/]+/resolve/[^/]+)/(.+)", path) for path in paths]
        redirected = (path.endswith(".safetensors") and not path.startswith("/cdn/") for path in paths)
        return [each[1] for each, is_sent_on in zip(found, redirected, strict=True) if each and not is_sent_on]


class Answer(BaseHTTPRequestHandler):
    """What the hub answers: the list of a repository, and its files with their hash, whole or from a byte on."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        path, hub = self.path.partition("?")[0], self.server
        hub.log.append((self.command, path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.list_files(found[1], found[2])
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            assert "Authorization" not in self.headers
            return self.send_file(hub.repositories[found[1]] / found[2], with_body)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None or found[1] not in hub.repositories:
            return self.fail(404, "RepoNotFound")
        if found[1] in hub.gated and self.headers.get("Authorization") != "Bearer hf_good":
            is_narrow = self.headers.get("Authorization") == "Bearer hf_narrow"
            return self.fail(403, "") if is_narrow else self.fail(401, "GatedRepo")
        file = hub.repositories[found[1]] / found[3]
        if not file.is_file():
            return self.fail(404, "EntryNotFound")
        return self.redirect(file, found) if file.suffix == ".safetensors" else self.send_file(file, with_body)

    def redirect(self, file, found):
        """Send the client of a large file to another host, as the hub does; its token must not come along."""
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{found[1]}/{found[3]}")
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        self.send_header("X-Linked-Size", str(file.stat().st_size))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def list_files(self, repo, revision):
        hub = self.server
        if repo not in hub.repositories:
            self.fail(401, "RepoNotFound")
            return
        if revision not in (None, "main", COMMIT):
            self.fail(404, "RevisionNotFound")
            return
        root = hub.repositories[repo]
        files = [
            {"rfilename": str(path.relative_to(root)), "size": path.stat().st_size}
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]
        body = json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, file, with_body):
        content, first = file.read_bytes(), 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(found[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        with contextlib.suppress(OSError):
            if file.name in self.server.slow:  # a slow line: the rest never comes
                self.wfile.write(content[first : first + CUT])
                self.wfile.flush()
                time.sleep(60)
            self.wfile.write(content[first:])

    def fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running hub that the client of this process talks to."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def add(hub, name, root):
    """Make a repository of a folder; returns it."""
    root.mkdir(parents=True, exist_ok=True)
    hub.repositories[name] = root
    return root


def only_network(path):
    save_ltx2(path, tensors=draw_network(SMALL))


def test_the_only_checkpoint_of_a_repository_is_downloaded_and_converted(hub, tmp_path, capsys):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    only_network(root / "ltx-2.safetensors")
    (root / "README.md").write_text("words")
    (root / "ltx-2-spatial-upscaler.safetensors").write_bytes(b"no checkpoint")
    run("convert", "--from", "someone/LTX-2", "--out", tmp_path / "a")
    told = capsys.readouterr().out
    assert re.search(r"^someone/LTX-2: 1 files, 0.00 GB; 1 of them with 0.00 GB to download into .*cache$", told, re.M)
    assert hub.sent() == ["ltx-2.safetensors"]
    assert read_config(tmp_path / "a")["name"] == "ltx-2"
    run("convert", "--from", "someone/LTX-2@main:ltx-2.safetensors", "--out", tmp_path / "b")
    assert "all in " in capsys.readouterr().out
    assert hub.sent() == ["ltx-2.safetensors"]
    name = "transformer/model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_path_that_is_there_wins_over_a_name(hub, tmp_path):
    (tmp_path / "someone").mkdir()
    only_network(tmp_path / "someone/ltx.safetensors")
    run("convert", "--from", "someone/ltx.safetensors", "--out", tmp_path / "a")
    assert not hub.log


@pytest.mark.parametrize("path", ["student.pt", "a/b.safetensors", "/a/b", "../a/b", "a/b/c", "there/nothing"])
def test_what_can_only_be_a_path_is_no_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert read_name(Path(path)) is None


def test_a_name_has_a_repository_a_revision_and_a_file():
    name = read_name(Path("google/gemma-3-12b-it@refs/pr/3:x/y.safetensors"))
    assert name is not None
    assert (name.repo, name.revision, name.file) == ("google/gemma-3-12b-it", "refs/pr/3", "x/y.safetensors")


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("https://huggingface.co/Lightricks/LTX-2", ("main", None)),
        ("https://huggingface.co/Lightricks/LTX-2/tree/v1", ("v1", None)),
        ("https://huggingface.co/Lightricks/LTX-2/blob/main/a/b.safetensors", ("main", "a/b.safetensors")),
        ("hf://Lightricks/LTX-2", ("main", None)),
    ],
)
def test_a_link_from_a_browser_is_a_name(link, expected):
    name = read_name(Path(link))
    assert name is not None
    assert (name.repo, name.revision, name.file) == ("Lightricks/LTX-2", *expected)


def test_of_several_checkpoints_one_must_be_named(hub, tmp_path, capsys):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    for name in ("dev", "distilled", "lora-384"):
        (root / f"ltx-2-{name}.safetensors").write_bytes(b"1234")
    save_diffusers(root)
    line = refused(capsys, "convert", "--from", "someone/LTX-2", "--out", tmp_path / "o")
    names = ("ltx-2-dev.safetensors", "ltx-2-distilled.safetensors", "model_index.json")
    assert "3 checkpoints fit, name one: " in line
    assert all(f"someone/LTX-2:{name} (0.00 GB)" in line for name in names)
    line = refused(capsys, "convert", "--from", "someone/LTX-2:ltx-2-de.safetensors", "--out", tmp_path / "o")
    assert "has no ltx-2-de.safetensors; near are ltx-2-dev.safetensors" in line


def test_only_what_is_needed_of_a_pipeline_is_downloaded(hub, tmp_path):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    tensors = save_diffusers(root)
    for extra in ("duration_head", "scheduler"):
        (root / extra).mkdir()
        (root / extra / "config.json").write_text("{}")
    (root / "ltx-2-dev.safetensors").write_bytes(b"no")
    whole = root / "transformer/diffusion_pytorch_model.safetensors"
    whole.unlink()
    keys = sorted(tensors)
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for name, held in shards.items():
        save_file({key: tensors[key] for key in held}, root / "transformer" / name)
    places = {key: name for name, held in shards.items() for key in held}
    index = root / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file({"x": np.zeros(1)}, root / "transformer/diffusion_pytorch_model.fp16.safetensors")
    run("convert", "--from", "someone/LTX-2:model_index.json", "--out", tmp_path / "a")
    assert sorted(hub.sent()) == sorted(
        ["model_index.json", *(f"transformer/{name}" for name in (*shards, index.name, "config.json"))]
    )
    run("convert", "--from", "someone/LTX-2:transformer", "--out", tmp_path / "b")
    assert read_config(tmp_path / "a")["name"] == "transformer"


def test_upsamplers_and_the_tokenizer_of_a_pipeline_are_needed_and_schedulers_are_not():
    parts = ("transformer", "latent_upsampler", "temporal_latent_upsampler", "text_encoder")
    stems = [("model" if part == "text_encoder" else "diffusion_pytorch_model") for part in parts]
    needed = ["model_index.json", "tokenizer/tokenizer.json", *(f"{part}/config.json" for part in parts)]
    needed += [f"{part}/{stem}.safetensors" for part, stem in zip(parts, stems, strict=True)]
    others = ["scheduler/scheduler_config.json", "duration_head/config.json", "duration_head/model.safetensors"]
    choice = choose("a/b", dict.fromkeys([*needed, *others, "tokenizer/merges.txt"], 1), "model_index.json")
    assert (choice.root, sorted(choice.files)) == ("", sorted(needed))


def test_files_of_gemma_s_folder_are_its_config_shards_and_tokenizer():
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    needed = ["config.json", "model.safetensors.index.json", *shards, "tokenizer.json", "tokenizer_config.json"]
    sizes = dict.fromkeys([*needed, ".gitattributes", "README.md", "generation_config.json", "chat_template.json"], 1)
    choice = choose("google/gemma", sizes, None)
    assert (choice.root, sorted(choice.files)) == ("", sorted(needed))


def test_a_file_that_is_all_of_its_shards_is_a_checkpoint():
    assert choose("a/b", {"model-00001-of-00001.safetensors": 1}, None).root == "model-00001-of-00001.safetensors"
    with pytest.raises(ValueError, match="has no checkpoint"):
        choose("a/b", {"model-00001-of-00002.safetensors": 1}, None)


@pytest.mark.parametrize("index", [(), ("model.safetensors.index.json",)])
@pytest.mark.parametrize("wanted", [None, "config.json"])
def test_the_only_shard_of_a_folder_comes_with_its_config_and_index(wanted, index):
    needed = ["config.json", *index, "model-00001-of-00001.safetensors"]
    choice = choose("a/b", dict.fromkeys([*needed, "README.md"], 1), wanted)
    assert (choice.root, sorted(choice.files)) == ("", sorted(needed))


def test_a_repository_without_weights_to_read_says_what_it_has():
    with pytest.raises(ValueError, match=r"a/b: has no checkpoint that can be read; it has README.md, model.bin"):
        choose("a/b", {"README.md": 1, "model.bin": 2}, None)


def test_a_lora_by_name_comes_with_the_settings_beside_it(hub, tmp_path, capsys):
    root = add(hub, "someone/style", tmp_path / "repo")
    names = (f"base_model.model.{QUERY}.lora_{role}.weight" for role in "AB")
    save_file(
        dict(zip(names, (np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)), strict=True)),
        root / "l.safetensors",
    )
    (root / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    only_network(tmp_path / "ltx.safetensors")
    run("convert", "--from", tmp_path / "ltx.safetensors", "--lora", "someone/style", 1, "--out", tmp_path / "a")
    assert "scale 4 of 1 modules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("google/gemma", "is gated: accept its licence at http.*/google/gemma, then log in with `hf auth login`"),
        ("nobody/nothing", "no such file here, and no such repository at http.*; if it is private, log in"),
        ("google/gemma@v9", "has no revision v9; http.*/google/gemma lists them"),
        ("google/..", "no such file here|must use alphanumeric|Repo id"),
    ],
)
def test_what_is_closed_or_missing_is_told_in_one_line_with_what_to_do(hub, tmp_path, capsys, name, complaint):
    root = add(hub, "google/gemma", tmp_path / "repo")
    only_network(root / "model.safetensors")
    hub.gated.add("google/gemma")
    line = refused(capsys, "convert", "--from", name, "--out", tmp_path / "o")
    assert re.search(complaint, line)
    assert not (tmp_path / "o").exists()


def test_a_gated_repository_opens_with_a_token(hub, tmp_path, monkeypatch):
    root = add(hub, "google/gemma", tmp_path / "repo")
    only_network(root / "ltx.safetensors")
    hub.gated.add("google/gemma")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    run("convert", "--from", "google/gemma", "--out", tmp_path / "o")


def test_a_token_without_the_right_to_read_is_told(hub, tmp_path, capsys, monkeypatch):
    only_network(add(hub, "google/gemma", tmp_path / "repo") / "ltx.safetensors")
    hub.gated.add("google/gemma")
    monkeypatch.setenv("HF_TOKEN", "hf_narrow")
    line = refused(capsys, "convert", "--from", "google/gemma", "--out", tmp_path / "o")
    assert "the hub refused the access (status 403): log in with `hf auth login`" in line


def test_gemma_comes_by_name_with_its_tokenizer(hub, tmp_path, capsys):
    root, config = add(hub, "google/gemma-3-12b-it", tmp_path / "repo"), tiny_text.ENCODER.gemma
    tiny_text.save_tokenizer(root)
    save_file(draw_network(config, HUGGING_FACE, component=gemma.COMPONENT), root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(gemma.COMPONENT.namings[HUGGING_FACE].table.write(config)))
    (root / "README.md").write_text("words")
    run("convert", "--from", "google/gemma-3-12b-it", "--out", tmp_path / "o")
    assert "no prompt can be read" not in capsys.readouterr().out
    assert (tmp_path / "o/text/tokenizer.json").is_file()
    assert sorted(hub.sent()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_without_a_network_what_was_downloaded_is_found(hub, tmp_path, capsys, monkeypatch):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    only_network(root / "ltx-2.safetensors")
    run("convert", "--from", "someone/LTX-2", "--out", tmp_path / "a")
    count = len(hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run("convert", "--from", "someone/LTX-2", "--out", tmp_path / "b")
    line = refused(capsys, "convert", "--from", "someone/else", "--out", tmp_path / "c")
    assert "someone/else: is not in the cache, and HF_HUB_OFFLINE forbids to download it" in line
    assert len(hub.log) == count


def test_a_hub_that_cannot_be_reached_is_named(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    line = refused(capsys, "convert", "--from", "someone/LTX-2", "--out", tmp_path / "c")
    assert "no such file here, and http://127.0.0.1:9 cannot be reached" in line


def test_without_the_client_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused(capsys, "convert", "--from", "someone/LTX-2", "--out", tmp_path / "c")
    assert "huggingface_hub is not installed: pip install 'omniforcing_jax[convert]'" in line


def test_an_interrupted_download_goes_on_where_it_was(hub, tmp_path):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    wide = dataclasses.replace(SMALL, layers=1, video=dataclasses.replace(SMALL.video, head_size=112))
    save_ltx2(root / "ltx-2.safetensors", wide, tensors=draw_network(wide))
    hub.slow.add("ltx-2.safetensors")
    command = [sys.executable, "-m", "converters", "convert", "--from", "someone/LTX-2", "--out", str(tmp_path / "o")]
    environment = os.environ | {
        "HF_TOKEN": "hf_good",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    first = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (parts := list((tmp_path / "home").rglob("*.incomplete"))) or not parts[0].stat().st_size:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    held = parts[0].stat().st_size
    assert 0 < held < (root / "ltx-2.safetensors").stat().st_size
    assert not (tmp_path / "o").exists()
    hub.slow.clear()
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    ranges = [asked for way, path, asked in hub.log if way == "GET" and "/cdn/" in path]
    assert ranges == [None, f"bytes={held}-"]
    assert not list((tmp_path / "home").rglob("*.incomplete"))
    run("convert", "--from", root / "ltx-2.safetensors", "--out", tmp_path / "local")
    name = "transformer/model.safetensors"
    assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_parts_that_do_not_fit_together_are_loaded_anew(hub, tmp_path, capsys):
    root = add(hub, "someone/LTX-2", tmp_path / "repo")
    save_file({"x": np.arange(3_000_000, dtype=np.float32)}, root / "ltx-2.safetensors")
    digest = hashlib.sha256((root / "ltx-2.safetensors").read_bytes()).hexdigest()
    partial = tmp_path / "cache/models--someone--LTX-2/blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"other content")
    command = ("convert", "--from", "someone/LTX-2", "--out", tmp_path / "o")
    line = refused(capsys, *command)
    assert "ltx-2.safetensors: the parts that were downloaded do not fit together; run the command again" in line
    assert "unknown x" in refused(capsys, *command)  # the file has arrived, and is no network
    assert partial.with_suffix("").read_bytes() == (root / "ltx-2.safetensors").read_bytes()
