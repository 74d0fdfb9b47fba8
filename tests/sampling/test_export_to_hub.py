"""``mmldm export --push-to-hub`` with huggingface_hub's own client, against a stand-in of the Hub on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmldm_scale.cli import main

TOKEN = "hf_test"


class Hub(BaseHTTPRequestHandler):
    """Takes a repository and one commit of it, all files in the commit itself, as the Hub does with small files."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self._answer(403, {"error": "no right to write"})
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self._answer(200, {"url": f"{self.server.address}/owner/name", "id": "owner/name"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif self.path == "/api/models/owner/name/commit/main":
            rows = [json.loads(line) for line in body.splitlines()]
            files = [row["value"] for row in rows if row["key"] == "file"]
            self.server.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            commit = {"commitUrl": f"{self.server.address}/owner/name/commit/1", "commitOid": "1", "success": True}
            self._answer(200, commit)
        else:
            self._answer(200, {})

    def do_GET(self) -> None:
        self._answer(200, {"id": "owner/name", "sha": "0", "siblings": []})

    def _answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.tokens, server.files, server.created, server.refuses = set(), {}, None, False
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def export(checkpoint: Path, output: Path, *options: str) -> int:
    return main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *options])


def test_the_folder_is_uploaded_as_it_is(model, hub, tmp_path, capsys) -> None:
    push = ("--format", "diffusers", "--license", "cc-by-4.0", "--push-to-hub", "owner/name")
    assert export(model.dit, tmp_path / "out", *push) == 0
    files = {file.relative_to(tmp_path / "out").as_posix(): file for file in (tmp_path / "out").rglob("*.*")}
    assert hub.files == {name: file.read_bytes() for name, file in files.items()}
    assert hub.created["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: diffusers\npipeline_tag: any-to-any\ntags:\n")
    assert 'from_pretrained("owner/name")' in card
    assert "uploaded to" in capsys.readouterr().out
    hub.refuses = True
    assert export(model.dit, tmp_path / "again", *push) == 74
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mmldm: --push-to-hub: owner/name: not uploaded: ")
    assert line.endswith("has what was exported")
    assert (tmp_path / "again" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub", "owner/name"], "--push-to-hub: needs --format diffusers"),
        (["--vocoder", "v"], "--vocoder: needs --format diffusers"),
        (["--license", "mit"], "--license: needs --format diffusers"),
        (["--format", "diffusers", "--push-to-hub", "name"], "--push-to-hub: 'name': must be OWNER/NAME"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_anything_is_written(
    model, hub, tmp_path, capsys, options, message
) -> None:
    assert export(model.dit, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_token_offline_or_for_a_part_alone_nothing_is_written(
    model, hub, tmp_path, capsys, monkeypatch
) -> None:
    push = ("--format", "diffusers", "--push-to-hub", "owner/name")
    assert export(model.autoencoder, tmp_path / "out", *push) == 2
    assert "is of kind 'autoencoder': must be a dit" in capsys.readouterr().err
    for option in ("--license", "--autoencoder", "--vocoder"):
        assert export(model.autoencoder, tmp_path / "out", "--format", "diffusers", option, "mit") == 2
        assert f"mmldm: {option}: {model.autoencoder} is of kind 'autoencoder': must" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert export(model.dit, tmp_path / "out", *push) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    assert export(model.dit, tmp_path / "out", *push) == 2
    assert "there is no token; run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert hub.created is None


def test_nothing_is_uploaded_unless_asked_for_and_a_missing_autoencoder_is_named(model, hub, tmp_path, capsys) -> None:
    other = str(model.other_autoencoder)
    assert export(model.dit, tmp_path / "out", "--format", "diffusers", "--autoencoder", other) == 2
    assert "is not the autoencoder that made the DiT's latents" in capsys.readouterr().err
    assert export(model.dit, tmp_path / "out", "--format", "diffusers") == 0
    assert hub.created is None
    assert hub.files == {}
