"""Files inside of tars, read in place: "videos/00012.tar/000120007.mp4" is a member of the tar videos/00012.tar.

    with opened(folder, "00012.tar/000120007.mp4") as file:  # the file itself where the path names one
        probe(file)

A member is copied into memory (a file without a name, which is gone with its process), since decoders want files; it
is never unpacked under its own name. :func:`notes` reads the text and the JSON that belong to the same sample.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from mmldm_scale.media.clip import MediaError

MEMBER_LIMIT = 1 << 30  # bytes of a video or of its sound: a process holds both in memory
NOTE_LIMIT = 1 << 18  # bytes of a text or of a JSON object: each clip of a sample gets a copy
_BLOCK = 512  # bytes of a tar's unit
_PADDING = 1 << 20  # bytes behind the end of a tar that are looked at
_CHUNK = 1 << 20  # bytes copied at once
_TAR = re.compile(r"\.tar/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar: its name, where its content begins, its bytes, and why it cannot be read ("": it can)."""

    name: str
    offset: int
    size: int
    fault: str = ""


@dataclass(frozen=True)
class TarIndex:
    """The members of a tar in order, without folders; ``damage`` says why there may be more ("": there are not)."""

    members: list[Member]
    damage: str = ""

    @cached_property
    def by_name(self) -> dict[str, Member]:
        """The members that can be read, by name; of equal names the first."""
        return {member.name: member for member in reversed(self.members) if not member.fault}


def index_tar(tar: Path) -> TarIndex:
    """Return what ``tar`` holds, as far as it can be read; only headers are read, and none is trusted."""
    members: list[Member] = []
    names: set[str] = set()
    try:
        size = tar.stat().st_size
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all; not in typeshed
                if not info.isdir():
                    member = _member(info, size)
                    if not member.fault and member.name in names:
                        member = replace(member, fault="duplicate_member")
                    names.add(member.name)
                    members.append(member)
            ending = _ending(tar, archive.offset)
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        return TarIndex(members, " ".join(str(error).split())[:200] or type(error).__name__)
    return TarIndex(members, ending)


def _ending(tar: Path, offset: int) -> str:
    """Return what is wrong with the end of ``tar`` at ``offset``, where tarfile found no further header."""
    with tar.open("rb") as stream:
        stream.seek(offset)
        block, padding = stream.read(_BLOCK), stream.read(_PADDING + 1)
    if len(block) < _BLOCK:
        return "it ends without the empty blocks that end a tar: it was cut off"
    if any(block):
        return f"at byte {offset:,} it has no header of a member: what follows is lost"
    return f"at byte {offset:,} it ends, but more follows, which is lost" if len(padding.strip(b"\0")) else ""


def _member(info: tarfile.TarInfo, tar_size: int) -> Member:
    name, fault = info.name.removeprefix("./"), ""
    if not info.isreg() or info.issparse():
        fault = "not_regular"
    elif str(PurePosixPath(name)) != name or name.startswith("/") or ".." in name.split("/"):
        fault = "bad_name"
    elif info.size < 0 or info.offset_data + info.size > tar_size:
        fault = "truncated"
    return Member(name, info.offset_data, info.size, fault)


@contextmanager
def opened(folder: Path, path: str) -> Iterator[Path]:
    """Yield the file to read for ``path``, relative to ``folder``: that file, or a member's copy in memory.

    Raises:
        MediaError: missing_file, too_large, truncated, unreadable: of a member.
    """
    place = _split(folder, path)
    if place is None:
        yield folder / path
        return
    tar, name = place
    descriptor = os.memfd_create("member")
    try:
        _copy(tar, _find(tar, name), descriptor)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def member_size(folder: Path, path: str) -> int | None:
    """Return the bytes of the member that ``path`` names; None if it names none."""
    place = _split(folder, path)
    member = None if place is None else _cached_index(place[0], _stamp(place[0])).by_name.get(place[1])
    return None if member is None else member.size


def notes(folder: Path, path: str) -> dict[str, Any]:
    """Return the text and the JSON object beside the member ``path``, as "text" and "json"; {} for a file.

    They are the members of the same sample that end in ".txt" and ".json". One that is damaged, no object or larger
    than NOTE_LIMIT is None.
    """
    place = _split(folder, path)
    if place is None:
        return {}
    tar, name = place
    known = _cached_index(tar, _stamp(tar)).by_name
    found: dict[str, Any] = {}
    for key, parse in (("txt", _text), ("json", _object)):
        member = known.get(f"{sample_key(name)}.{key}")
        if member is not None:
            content = None if member.size > NOTE_LIMIT else read_member(tar, member)
            found["text" if key == "txt" else key] = None if content is None else parse(content)
    return found


def sample_key(name: str) -> str:
    """Return the key of the sample that the member ``name`` belongs to, by WebDataset's rule: up to its first dot."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def read_member(tar: Path, member: Member) -> bytes:
    """Return the content of ``member``; raise OSError if the tar cannot be read."""
    with tar.open("rb") as stream:
        stream.seek(member.offset)
        return stream.read(member.size)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace").strip()


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content, parse_constant=lambda name: None)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _split(folder: Path, path: str) -> tuple[Path, str] | None:
    """Return the tar and the member's name in ``path``; None if it leads through no tar."""
    for match in _TAR.finditer(path):
        tar = folder / path[: match.end() - 1]
        if tar.is_file():
            return tar, path[match.end() :]
    return None


def _find(tar: Path, name: str) -> Member:
    member = _cached_index(tar, _stamp(tar)).by_name.get(name)
    if member is None:
        raise MediaError("missing_file", "the tar has no such member")
    if member.size > MEMBER_LIMIT:
        raise MediaError("too_large", f"{member.size:,} bytes; at most {MEMBER_LIMIT:,} of a member are read")
    return member


def _copy(tar: Path, member: Member, descriptor: int) -> None:
    left = member.size
    try:
        with tar.open("rb") as stream:
            stream.seek(member.offset)
            while left and (chunk := stream.read(min(left, _CHUNK))):
                os.write(descriptor, chunk)
                left -= len(chunk)
    except OSError as error:
        raise MediaError("unreadable", str(error.strerror or error)) from None
    if left:
        raise MediaError("truncated", f"the tar ends {left} bytes before its member does")


def _stamp(tar: Path) -> tuple[int, int]:
    status = tar.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)  # a process works its way through one tar after the other
def _cached_index(tar: Path, stamp: tuple[int, int]) -> TarIndex:
    return index_tar(tar)
