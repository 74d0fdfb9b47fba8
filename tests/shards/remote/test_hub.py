"""Sets at hf://datasets/… are read as those at other URLs: against a stand-in of the hub on this machine."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.shards.remote import remote
from mmldm_scale.shards.remote.cache import Cache

REPOSITORY = "somebody/clips"


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks about the files of one data set; ``files`` is their folder."""

    files: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/datasets/{REPOSITORY}/tree/main"):
            folder = self.files / path.removeprefix(f"/api/datasets/{REPOSITORY}/tree/main").strip("/")
            if folder.is_dir():
                self.answer(json.dumps([self.entry(file) for file in sorted(folder.iterdir())]).encode())
            else:
                self.answer(b'{"error": "Not found"}', 404, ("X-Error-Code", "EntryNotFound"))
        elif path in (f"/api/datasets/{REPOSITORY}", f"/api/datasets/{REPOSITORY}/revision/main"):
            self.answer(json.dumps({"_id": "1", "id": REPOSITORY, "sha": "0" * 40, "siblings": []}).encode())
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/main/"):
            self.content(path.removeprefix(f"/datasets/{REPOSITORY}/resolve/main/"))
        else:
            self.answer(b'{"error": "Repository not found"}', 404, ("X-Error-Code", "RepoNotFound"))

    def entry(self, file: Path) -> dict[str, object]:
        kind = "directory" if file.is_dir() else "file"
        path = file.relative_to(self.files).as_posix()
        return {"type": kind, "oid": "0" * 40, "size": file.stat().st_size if kind == "file" else 0, "path": path}

    def content(self, name: str) -> None:
        data = (self.files / name).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(data)
            return
        first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
        self.answer(data[first : last + 1], 206, ("Content-Range", f"bytes {first}-{last}/{len(data)}"))

    def answer(self, data: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(data)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """The folder whose files the hub has."""
    folder = tmp_path / "hub"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Files", (Hub,), {"files": folder}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint, "token": False})
    monkeypatch.setattr(remote, "_sleep", lambda seconds: None)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_set_of_the_hub_is_read(hub: Path, make_set, tmp_path: Path) -> None:
    near = ShardSet(make_set(hub / "latents", "latents"), "latents")
    far = ShardSet(f"hf://datasets/{REPOSITORY}/latents", "latents", Cache(tmp_path / "cache", 10**9))
    assert far.fingerprint == near.fingerprint
    for index in (0, 7, 13):
        there, here = far[index], near[index]
        assert there.key == here.key
        assert {name: bytes(part) for name, part in there.members.items()} == {
            name: bytes(part) for name, part in here.members.items()
        }


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"{REPOSITORY}/nowhere", "nowhere/manifest.json: there is no such file"),
        ("nobody/clips/x", "clips/x/manifest.json: there is no such file"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(url: str, says: str, hub: Path, make_set, tmp_path: Path) -> None:
    make_set(hub / "latents", "latents")
    with pytest.raises(UserError, match=says):
        ShardSet(f"hf://datasets/{url}", "latents", Cache(tmp_path / "cache", 10**9))
