"""Fetching tars into a cache before they are needed, while others are read.

Each process that reads has one :class:`Ahead` with a thread of its own. All processes of a node want the same tars, in
the same order; each takes the first that nobody is fetching yet, so that together they fetch each tar once.
"""

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.remote.cache import Cache, NoRoom
from mmldm_scale.shards.remote.remote import StoredTar

PAUSE = 0.5  # seconds until it is looked again whether what was read before has been let go of


class Ahead:
    """Fetches in the background what will be needed next, one tar at a time."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._begin()

    def want(self, reader: int, tars: Sequence[StoredTar]) -> None:
        """Fetch ``tars`` in this order, in place of whatever ``reader`` (a number) still wanted before."""
        if self._process != os.getpid():  # forked: the thread stayed behind, and its lock may have been held
            self._begin()
        with self._changed:
            self._wanted[reader] = list(tars)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shards ahead", daemon=True)
            self._thread.start()

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cache = state["_cache"]
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._wanted: dict[int, list[StoredTar]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        while True:
            tars = self._next()
            try:
                self._cache.fetch(tars[0], wait=False)
            except NoRoom:
                time.sleep(PAUSE)
                continue
            except UserError:
                pass  # whoever needs the tar tries again, and says what is wrong
            tars.pop(0)

    def _next(self) -> list[StoredTar]:
        """Wait until something is wanted; return the list that begins with it."""
        with self._changed:
            while not any(self._wanted.values()):
                self._changed.wait()
            return next(tars for tars in self._wanted.values() if tars)
