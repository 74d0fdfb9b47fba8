"""Writing whole files to a folder at a URL that fsspec supports (s3://, gs://, …), each complete or absent.

    remote = RemoteFolder("s3://bucket/latents")
    remote.put(Path("work/shard-000000.tar"), "shard-000000.tar")

Object stores show an object when its upload is complete. Its size is compared afterwards. After an error of the file
system each call is tried again a few times, as in :mod:`.remote`.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem

from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX
from mmldm_scale.common.errors import Outage
from mmldm_scale.shards.remote.remote import file_system, with_retries

Result = TypeVar("Result")


class RemoteFolder:
    """The objects below ``url``, by the names that follow it.

    Raises:
        UserError: in every method, if the URL cannot be used; Outage if its server fails, after all retries.
    """

    def __init__(self, url: str) -> None:
        """Use ``url``; raise UserError if there is no file system for its protocol."""
        self.url = url
        self._filesystem, self._path = file_system(url)
        self._has_folders = isinstance(self._filesystem, LocalFileSystem)  # which object stores do not

    def names(self) -> list[str]:
        """Return the names of the objects, and of the folders that further ones lie in, sorted."""

        def attempt() -> list[str]:
            self._filesystem.invalidate_cache()  # of listings, which file systems keep
            try:
                found = self._filesystem.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
            names = (path.strip("/").removeprefix(self._path.strip("/")).strip("/") for path in found)
            return sorted(filter(None, names))  # an object store may list the folder itself

        return self._retry("", attempt)

    def size(self, name: str) -> int | None:
        """Return the size in bytes of the object ``name``; None if there is none."""

        def attempt() -> int | None:
            self._filesystem.invalidate_cache()
            try:
                return int(self._filesystem.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

        return self._retry(name, attempt)

    def read(self, name: str) -> bytes | None:
        """Return the content of the object ``name``; None if there is none."""

        def attempt() -> bytes | None:
            try:
                content: bytes = self._filesystem.cat_file(self._at(name))
            except FileNotFoundError:
                return None
            return content

        return self._retry(name, attempt)

    def put(self, file: Path, name: str) -> None:
        """Upload ``file`` as the object ``name``, replacing an older one; its size is compared afterwards."""

        def attempt() -> None:
            self._make_folder(name)
            self._filesystem.put_file(str(file), self._at(name))
            self._filesystem.invalidate_cache()
            arrived, size = self._filesystem.info(self._at(name))["size"], file.stat().st_size
            if arrived != size:
                raise Outage(f"{self.url}/{name}: {size:,} bytes were uploaded, but it has {arrived:,}")

        self._retry(name, attempt)

    def check_writable(self) -> None:
        """Write and remove a small object."""
        name = f"write-test-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"  # other processes may do so at the same time

        def attempt() -> None:
            self._make_folder(name)
            self._filesystem.pipe_file(self._at(name), b"test")
            self._filesystem.rm_file(self._at(name))

        self._retry(name, attempt)

    def _retry(self, name: str, attempt: Callable[[], Result]) -> Result:
        return with_retries(f"{self.url}/{name}".rstrip("/"), attempt, "cannot be used")

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _make_folder(self, name: str) -> None:
        if self._has_folders:
            self._filesystem.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
