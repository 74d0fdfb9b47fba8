"""Leases: processes on any number of nodes agree, through a shared folder alone, who makes which part of it.

    with Leases(folder) as leases:
        if leases.take("shard-000012"):
            …
            leases.release("shard-000012")

A lease is a small file ``folder/leases/NAME`` that names its holder and is touched every 10 seconds. It has expired,
and another process may take it, when its holder's process has ended (detected at once on the same machine) or when its
file was not touched for 60 seconds. These are measured on the observer's clock, so the clocks of nodes need not agree.

A process that was suspended for a minute may have lost its lease; :meth:`Leases.holds` tells. If the parts are pure
functions of a plan and written atomically, as shards are, two processes that make the same part do no harm.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from mmldm_scale.common.atomic_files import full_disk, remove_leftovers
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.processes import identity

LEASES = "leases"  # subfolder that holds the lease files
RENEWAL_INTERVAL = 10.0  # seconds between two touches of a lease by its holder
ATTEMPTS = 100  # at making the folder, which others may remove while it is empty
LEASE_TIMEOUT = 60.0  # seconds without a touch after which a lease has expired
POLL_INTERVAL = 0.5  # seconds between two attempts of a process that waits for a lease


class Leases:
    """The leases of this process on parts of ``folder``; leaving the block releases them all.

    Args:
        folder: the shared folder; made when the first lease is taken.
        facts: further strings about the holder for other processes to read, such as job="17".
    """

    def __init__(self, folder: Path, **facts: str) -> None:
        self._folder = folder / LEASES
        self._new = [path for path in (folder, *folder.parents) if not path.exists()]  # folders, innermost first
        self._me = {**facts, **identity(os.getpid()), "token": secrets.token_hex(8)}
        self._held: set[str] = set()
        self._seen: dict[str, tuple[Any, float]] = {}  # others' leases: (token, last touch), when first seen so
        self._renewed: set[str] = set()  # others' leases that were touched between two calls of take
        # Takes the leases: an exception that a signal raises in the main thread can't leave one half taken.
        self._taker = ThreadPoolExecutor(1, thread_name_prefix="leases")
        self._end = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="leases", daemon=True)

    def take(self, name: str) -> bool:
        """Take the lease ``name``; return False if another live process holds it.

        Raises:
            UserError: the folder cannot be made, or the disk is full.
        """
        return self._taker.submit(self._take, name).result()

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Hold the lease on the file ``path`` for the block, which writes it atomically; wait while another one does.

        Temporary files that killed processes have left of it are removed first. A process that was suspended so long
        that it lost the lease leaves the writing to the other one.

        Raises: as :meth:`take`.
        """
        while not self.take(path.name):
            time.sleep(POLL_INTERVAL)
        try:
            remove_leftovers(path)
            with self.finishing(path.name):
                yield
        finally:
            self.release(path.name)

    def rival(self, name: str) -> tuple[dict[str, Any], bool]:
        """Return who held ``name`` when :meth:`take` failed ({} if unknown), and whether that process surely lives.

        A process on another machine surely lives if it touched its lease between two calls of :meth:`take`.
        """
        holder, _ = _read(self._folder / name)
        return holder, _same_machine(holder, self._me) or name in self._renewed

    def holds(self, name: str) -> bool:
        """Return whether this process still holds ``name``; a process that was suspended may have lost it."""
        return name in self._held and _read(self._folder / name)[0].get("token") == self._me["token"]

    @contextlib.contextmanager
    def finishing(self, name: str) -> Iterator[None]:
        """Run the block that renames the temporary files of ``name``; ignore missing files if the lease was lost.

        They are missing if this process was suspended and another one took the lease and removed them.
        """
        try:
            yield
        except FileNotFoundError:
            if self.holds(name):
                raise

    def release(self, name: str) -> None:
        """Release the lease ``name``, if this process still holds it."""
        if self.holds(name):
            (self._folder / name).unlink(missing_ok=True)
        self._held.discard(name)

    def clear(self) -> None:
        """Remove all leases of other processes. Call it when every part is made: their holders are not needed."""
        with contextlib.suppress(FileNotFoundError):  # another process has removed the empty folder
            for path in self._folder.iterdir():
                if path.name not in self._held:
                    path.unlink(missing_ok=True)

    def __enter__(self) -> "Leases":
        self._renewal.start()
        self._taker.submit(bool).result()  # starts its thread now: a signal meanwhile finds no lease taken
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._renewal.join()
        self._taker.shutdown()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # other processes have leases in the folder, or it was never made
            self._folder.rmdir()
            for folder in self._new:  # as long as they are still empty
                folder.rmdir()

    def _take(self, name: str) -> bool:
        path = self._folder / name
        while not self._create(path):
            holder, touched = _read(path)
            if touched is None:
                continue  # released just now
            if self._alive(name, holder, touched):
                return False
            self._remove_expired(path, holder)
        self._held.add(name)
        self._seen.pop(name, None)
        return True

    def _create(self, path: Path) -> bool:
        for _ in range(ATTEMPTS):
            try:
                with full_disk(path):
                    self._make_folder()
                    with path.open("x") as file:  # exclusive on every file system that clusters use, NFS included
                        self._write_holder(path, file)
            except FileExistsError:
                return False
            except FileNotFoundError:  # another process removed the empty folder in between
                continue
            return True
        raise UserError(f"{self._folder.parent}: no folder can be made there")

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (NotADirectoryError, FileExistsError):
            raise UserError(f"{self._folder.parent}: must be a folder, not a file") from None

    def _write_holder(self, path: Path, file: TextIO) -> None:
        try:
            json.dump(self._me, file)
            file.flush()
        except OSError:
            path.unlink()  # a lease without a holder would block others until it expires
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
                self._renewed.add(name)
            return True
        return time.monotonic() - since < LEASE_TIMEOUT

    def _remove_expired(self, path: Path, holder: dict[str, Any]) -> None:
        """Remove the expired lease ``path`` of ``holder``; if another process took it meanwhile, put that one back."""
        moved = path.with_name(f"{path.name}.{self._me['token']}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(moved)
            if _read(moved)[0] != holder:
                moved.rename(path)
            moved.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._end.wait(RENEWAL_INTERVAL):
            for name in list(self._held):
                with contextlib.suppress(FileNotFoundError):  # released meanwhile, or taken by another process
                    os.utime(self._folder / name)


def peek(folder: Path, name: str) -> tuple[dict[str, Any], bool] | None:
    """Return the holder of the lease ``name`` on ``folder`` and whether it seems alive, without taking it; or None.

    A holder on another machine seems alive if its last touch, by this machine's clock, is less than LEASE_TIMEOUT ago.
    """
    holder, touched = _read(folder / LEASES / name)
    if touched is None:
        return None
    if _same_machine(holder, identity(os.getpid())):
        process = identity(holder["pid"])
        return holder, bool(process) and process.items() <= holder.items()
    return holder, time.time() - touched / 1e9 < LEASE_TIMEOUT


def describe(holder: dict[str, Any]) -> str:
    """Return which process holds a lease, such as "process 4711 on node3"; "?" stands for what is unknown."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _read(path: Path) -> tuple[dict[str, Any], int | None]:
    """Return the holder of the lease ``path`` and when it was touched (ns, file system's clock); None if there is none.

    The holder is {} while the lease is being written. Opening the file makes NFS ask its server.
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


def _same_machine(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    same = all(holder.get(key) == me[key] for key in ("host", "boot", "processes"))
    return same and isinstance(holder.get("pid"), int)
