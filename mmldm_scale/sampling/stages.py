"""Stages that work at the same time, each in a thread of its own, on items that they hand on to one another.

    stages = Stages()
    stages.run(items, [denoise, decode, write], look)

While one stage works on an item, the one before it works on the next one. At most one finished item waits between two
stages, so a slow stage holds up those before it.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

POLL_SECONDS = 0.1  # between two looks of a waiting stage at whether the work is to end
_END = object()  # follows the last item


class _Ended(BaseException):
    """The work is to end before it is done; raised in stages only."""


class Stages:
    """The threads of some stages, and the wish that they end."""

    def __init__(self) -> None:
        self._end = threading.Event()

    def check(self, *_: object) -> None:
        """End the stage that calls this, by an exception, if the work is to end. A long stage calls it now and then."""
        if self._end.is_set():
            raise _Ended

    def run(
        self,
        items: Iterable[Any],
        stages: Sequence[Callable[[Any], Any]],
        look: Callable[[], None] = lambda: None,
        look_seconds: float = 0.5,
    ) -> None:
        """Pass each of ``items`` through all ``stages``, in order, and return when all have passed.

        An exception in a stage, or in this thread (a signal), ends all stages: each at its next :meth:`check`, or when
        its item is done. It is raised here when all have ended.

        Args:
            items: iterated in the thread of the first stage.
            stages: each takes an item and returns what the next one takes.
            look: is called every ``look_seconds`` meanwhile.
        """
        ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        between = [queue.Queue[Any](1) for _ in stages[1:]]
        sources = [iter(items), *(self._received(waiting) for waiting in between)]
        threads = [
            threading.Thread(target=self._work, args=(stage, source, target, ends), name=f"stage {number}")
            for number, (stage, source, target) in enumerate(zip(stages, sources, [*between, None], strict=True))
        ]
        try:
            for thread in threads:
                thread.start()
            self._wait(ends, len(threads), look, look_seconds)
        finally:
            self._end.set()
            for thread in threads:
                if thread.ident is not None:  # a signal may come before all are started
                    thread.join()

    @staticmethod
    def _wait(
        ends: "queue.SimpleQueue[BaseException | None]", count: int, look: Callable[[], None], seconds: float
    ) -> None:
        """Wait until ``count`` stages have ended; raise what one of them has raised."""
        while count:
            try:
                error = ends.get(timeout=seconds)
            except queue.Empty:
                look()
                continue
            if error is not None:
                raise error
            count -= 1

    def _work(
        self,
        stage: Callable[[Any], Any],
        source: Iterator[Any],
        target: "queue.Queue[Any] | None",
        ends: "queue.SimpleQueue[BaseException | None]",
    ) -> None:
        try:
            for item in source:
                self.check()
                result = stage(item)
                if target is not None:
                    self._send(result, target)
            if target is not None:
                self._send(_END, target)
        except BaseException as error:  # raised again in the thread that waits
            ends.put(error)
        else:
            ends.put(None)

    def _send(self, item: Any, target: "queue.Queue[Any]") -> None:
        while True:
            self.check()
            try:
                return target.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    def _received(self, waiting: "queue.Queue[Any]") -> Iterator[Any]:
        while True:
            self.check()
            try:
                item = waiting.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if item is _END:
                return
            yield item
            del item  # a stage that waits holds no memory of what it has done
