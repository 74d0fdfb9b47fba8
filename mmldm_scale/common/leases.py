"""Who makes which part of a folder, agreed through it alone, by any number of processes on any number of nodes.

    with Leases(folder) as leases:
        if leases.take("shard-000012"):
            …
            leases.release("shard-000012")

A lease is a small file in ``folder/leases`` that names its holder and is touched every ten seconds. It is dead, and
free to be taken over, when its holder's process is gone (seen at once on the same machine) or when nobody has touched
it for a minute of the observer's own time, so that the clocks of nodes need not agree.

A process that was frozen for a minute may have lost its lease without knowing (:meth:`Leases.holds`). Where parts are
pure functions of a plan, written aside and renamed, as shards are, two that made the same one did no harm.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mmldm_scale.common.atomic_files import full_disk
from mmldm_scale.common.processes import identity

LEASES = "leases"
HEARTBEAT = 10.0  # seconds between two touches
SILENCE = 60.0  # seconds after which an untouched lease is dead


class Leases:
    """The leases of this process on parts of ``folder``; leaving the block releases them all.

    Args:
        facts: further strings for others to read of the holder.
    """

    def __init__(self, folder: Path, **facts: str) -> None:
        self._folder = folder / LEASES
        self._new = not folder.exists()
        self._me = {**facts, **identity(os.getpid()), "token": secrets.token_hex(8)}
        self._held: set[str] = set()
        self._seen: dict[str, tuple[Any, float]] = {}  # leases of others: their last touch, when we first saw it
        self._beating: set[str] = set()  # leases of others that were touched since
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)

    def take(self, name: str) -> bool:
        """Return whether the lease ``name`` is ours from now on; it is not while somebody alive holds it."""
        path = self._folder / name
        while not self._create(path):
            holder, touched = _read(path)
            if touched is None:
                continue  # released just now
            if self._alive(name, holder, touched):
                return False
            self._bury(path, holder)
        self._held.add(name)
        self._seen.pop(name, None)
        return True

    def rival(self, name: str) -> tuple[dict[str, Any], bool]:
        """Return who had ``name`` when :meth:`take` failed, {} if unknown, and whether it surely lives.

        One elsewhere does if it touched its lease between two calls of :meth:`take`.
        """
        holder, _ = _read(self._folder / name)
        return holder, _same_machine(holder, self._me) or name in self._beating

    def holds(self, name: str) -> bool:
        """Return whether ``name`` is still ours: a process that was frozen may have lost it."""
        return name in self._held and _read(self._folder / name)[0].get("token") == self._me["token"]

    @contextlib.contextmanager
    def finishing(self, name: str) -> Iterator[None]:
        """Let the block give the files of ``name`` their names, unless what it wrote aside is gone.

        Then this process was frozen and taken for dead since it last looked, and another one makes them.
        """
        try:
            yield
        except FileNotFoundError:
            if self.holds(name):
                raise

    def release(self, name: str) -> None:
        """Give ``name`` back."""
        if self.holds(name):
            (self._folder / name).unlink(missing_ok=True)
        self._held.discard(name)

    def clear(self) -> None:
        """Remove every lease but ours, once there is nothing left to lease: their holders are dead or too late."""
        for path in self._folder.iterdir():
            if path.name not in self._held:
                path.unlink(missing_ok=True)

    def __enter__(self) -> "Leases":
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._heart.join()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # others have leases in it, or nobody ever had
            self._folder.rmdir()
            if self._new:  # and nothing came of it
                self._folder.parent.rmdir()

    def _create(self, path: Path) -> bool:
        try:
            with full_disk(path):
                self._folder.mkdir(parents=True, exist_ok=True)
                with path.open("x") as file:  # exclusive on every file system that clusters use, NFS included
                    self._sign(path, file)
        except FileExistsError:
            return False
        except FileNotFoundError:  # somebody who found it empty removed the folder in between
            return self._create(path)
        return True

    def _sign(self, path: Path, file: TextIO) -> None:
        try:
            json.dump(self._me, file)
            file.flush()
        except OSError:
            path.unlink()  # a lease of nobody would have to die by silence
            raise

    def _alive(self, name: str, holder: dict[str, Any], touched: int) -> bool:
        if _same_machine(holder, self._me):
            process = identity(holder["pid"])
            return bool(process) and process.items() <= holder.items()
        state = (holder.get("token"), touched)
        seen, since = self._seen.get(name, (None, 0.0))
        if seen != state:
            self._seen[name] = (state, time.monotonic())
            if seen and seen[0] == state[0]:
                self._beating.add(name)
            return True
        return time.monotonic() - since < SILENCE

    def _bury(self, path: Path, holder: dict[str, Any]) -> None:
        """Remove the dead lease ``path`` of ``holder``; if another did so first, leave what stands there now."""
        grave = path.with_name(f"{path.name}.{self._me['token']}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(grave)
            if _read(grave)[0] != holder:
                grave.rename(path)
            grave.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT):
            for name in list(self._held):
                with contextlib.suppress(FileNotFoundError):  # released meanwhile, or taken over
                    os.utime(self._folder / name)


def peek(folder: Path, name: str) -> tuple[dict[str, Any], bool] | None:
    """Return who holds the lease ``name`` on ``folder`` and whether it seems alive, without claiming anything; or None.

    A holder elsewhere seems so if its last touch is no older than that of a living one by the clock here.
    """
    holder, touched = _read(folder / LEASES / name)
    if touched is None:
        return None
    if _same_machine(holder, identity(os.getpid())):
        process = identity(holder["pid"])
        return holder, bool(process) and process.items() <= holder.items()
    return holder, time.time() - touched / 1e9 < SILENCE


def _read(path: Path) -> tuple[dict[str, Any], int | None]:
    """Return who holds the lease ``path`` and when (ns, its file system's clock) it was touched; None without a lease.

    The holder is empty while the lease is being written. Opening the file makes NFS ask its server.
    """
    try:
        with path.open() as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            holder = json.load(file)
    except FileNotFoundError:
        return {}, None
    except ValueError:
        return {}, touched
    return holder if isinstance(holder, dict) else {}, touched


def _same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other[key] for key in ("host", "boot", "processes")) and isinstance(one.get("pid"), int)
