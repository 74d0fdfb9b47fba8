"""Prefetching: fetches tars into a cache before they are needed, while others are read.

Each reading process has one :class:`Prefetcher` with its own thread. All processes of a node need the same tars in the
same order; each takes the first one that no process is fetching yet, so that together they fetch each tar once.
"""

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.remote.cache import Cache, NoRoom
from mmldm_scale.shards.remote.remote import StoredTar

RETRY_INTERVAL = 0.5  # seconds between two attempts to fetch a tar while the cache has no room for it


class Prefetcher:
    """Fetches tars in the background, one at a time."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._requests: dict[int, list[StoredTar]] = {}  # by reader
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def request(self, reader: int, tars: Sequence[StoredTar]) -> None:
        """Fetch ``tars`` in this order, instead of what is left of the previous request of ``reader`` (a number)."""
        if self._process != os.getpid():  # after a fork the thread is missing, and the lock may be held
            self._begin()
        with self._changed:
            self._requests[reader] = list(tars)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shard prefetch", daemon=True)
            self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cache = state["_cache"]
        self._begin()

    def _run(self) -> None:
        while True:
            tars = self._next()
            try:
                self._cache.fetch(tars[0], wait=False)
            except NoRoom:
                time.sleep(RETRY_INTERVAL)
                continue
            except UserError:
                pass  # the process that reads the tar fetches it itself and reports the error
            tars.pop(0)

    def _next(self) -> list[StoredTar]:
        """Wait until there is a request; return the list of its tars."""
        with self._changed:
            while not any(self._requests.values()):
                self._changed.wait()
            return next(tars for tars in self._requests.values() if tars)
