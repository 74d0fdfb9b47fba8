"""Runs a function over items in processes that may crash, hang or be killed.

``process_pool.map(function, items, workers, timeout)`` yields the result of every item, in the items' order. A video
decoder is a large C library that reads whatever was downloaded: all decoding goes through here.

Processes are forked by multiprocessing's fork server, which has imported what they need: a new one takes milliseconds
(``spawn`` imports everything again, seconds for torch), and is clean whatever threads, CUDA state and open files the
caller has (``fork`` copies locks that other threads hold, and would then lose good items to the time limit). Each
process has a socket and a thread of its own here, so that one which stops in the middle of an answer delays no other.

pebble's ProcessPool (5.2.3) was tried instead and is as fast, but its processes answer through one pipe under one lock:
a process that stopped in the middle of an answer blocked the pool for ever.
"""

import os
import pickle
import resource
import signal
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from mmldm_scale.common.processes import die_with_parent
from mmldm_scale.media.clip import MediaError

Item = TypeVar("Item")
Result = TypeVar("Result")

ATTEMPTS = 2  # tries of an item: the first process may have been killed for another reason than the item
START_SECONDS = 300.0  # until a process has imported what it needs, also from a busy network disk
KILL_SECONDS = 5.0  # until a killed process has ended; it takes longer only while it waits for a dead disk
_LENGTH = struct.Struct(">Q")  # precedes every message
_FORKING = threading.Lock()  # multiprocessing's list of children is not safe among threads


def default_workers() -> int:
    """Return the default number of decoding processes: one for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def batched(items: list[Item], size: int) -> list[list[Item]]:
    """Return ``items`` in slices of ``size``, the last one shorter if need be."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def in_parts(
    numbers: Iterable[int],
    parts: Callable[[int], Sequence[Item]],
    work: Callable[[Iterator[Item]], Iterable[Result]],
) -> Iterator[tuple[int, Iterator[Result]]]:
    """Yield each of ``numbers`` with the results of its parts, in order; take all of them before the next number.

    Work runs ahead of what is asked for, from one number's parts into the next one's; so ``numbers`` is drawn early.

    Args:
        parts: returns the parts of a number, one at least.
        work: given all parts, one after the other, yields one result each, in order.
    """
    begun: deque[tuple[int, int]] = deque()  # numbers handed out, and how many results each waits for

    def hand_out() -> Iterator[Item]:
        for number in numbers:
            items = parts(number)
            begun.append((number, len(items)))
            yield from items

    results = iter(work(hand_out()))
    for first in results:  # of the number that begun[0] says
        number, count = begun.popleft()
        yield number, chain([first], islice(results, count - 1))


def as_is(item: Item) -> Item:
    """Return ``item``, where a DataLoader would make tensors of it (its ``collate_fn``)."""
    return item


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process (a DataLoader's ``worker_init_fn``)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def map(  # noqa: A001  # used qualified, as process_pool.map
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, timeout: float
) -> Iterator[Result | MediaError]:
    """Yield ``function(item)`` for each of ``items``, in their order, computed in ``workers`` processes.

    Args:
        function: pickled once for each process; its module must be importable without side effects.
        items: pickled one by one; taken in the caller's thread, 2 × workers (at least 2) ahead of what was yielded.
        workers: processes; 0 calls ``function`` here, without any protection.
        timeout: seconds for one call.

    Yields:
        The results, in the order of the items. An item whose process dies gives MediaError("decoder_crashed"), one
        that takes longer than ``timeout`` is killed and gives MediaError("decoder_hung"); either is tried again in a
        new process first.

    Raises:
        Exception: whatever ``function`` raises, with its traceback as a note; the other items are abandoned.
        RuntimeError: a process cannot be started.
    """
    if workers == 0:
        yield from (function(item) for item in items)
        return
    processes = [_Worker(function, timeout) for _ in range(workers)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in processes:
        idle.put(worker)

    def call(item: Item) -> Result | MediaError:
        worker = idle.get()  # there are as many as threads
        try:
            return worker.call(item)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(workers, thread_name_prefix="worker")
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(threads.submit(call, item))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in processes:
            worker.stop()
        threads.shutdown(cancel_futures=True)


class _Worker(Generic[Item, Result]):
    """A process that calls ``function``, started when first needed and again when lost."""

    def __init__(self, function: Callable[[Item], Result], timeout: float) -> None:
        self._function, self._timeout = function, timeout
        self._process: BaseProcess | None = None
        self._stopped = False

    def call(self, item: Item) -> Result | MediaError:
        """Return ``function(item)``, or how it failed to answer; raise what it raised."""
        question = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        fault = MediaError("decoder_hung", "abandoned")
        for _ in range(ATTEMPTS):
            if self._process is None and not self._start():
                break
            deadline = time.monotonic() + self._timeout
            try:
                _send(self._socket, question, deadline)
                answer = _receive(self._socket, deadline)
            except TimeoutError:
                self._lose()
                fault = MediaError("decoder_hung", f"no answer within {self._timeout:g} s")
            except ConnectionError:
                fault = MediaError("decoder_crashed", f"its process died of {self._lose()}")
            else:
                value, trace = pickle.loads(answer)
                if trace is None:
                    return value
                value.add_note(f"in a worker process:\n{trace}")
                raise value
        return fault

    def stop(self) -> None:
        """Kill the process, whatever it does, and start no other; the thread that waits for it is then free."""
        with _FORKING:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self) -> bool:
        """Start a process and wait until it can be asked; return False if this worker has been stopped."""
        context = get_context("forkserver")
        ours, theirs = socket.socketpair()
        with _FORKING, theirs:
            if self._stopped:
                ours.close()
                return False
            context.set_forkserver_preload(["__main__", self._function.__module__])
            process = context.Process(target=_serve, args=(self._function, theirs), name="decoder", daemon=True)
            process.start()
            self._process, self._socket = process, ours
        try:
            _receive(ours, time.monotonic() + START_SECONDS)
        except OSError:
            ending = self._lose()
            if not self._stopped:
                raise RuntimeError(f"a worker process died of {ending} before it could be asked anything") from None
            return False
        return True

    def _lose(self) -> str:
        """Kill the process if it still lives, and return what it died of."""
        with _FORKING:
            process, self._process = self._process, None
            assert process is not None
            process.kill()
            process.join(KILL_SECONDS)
        self._socket.close()
        code = process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


# --- in the process ---------------------------------------------------------------------------------------------------


def _serve(function: Callable[[Any], Any], caller: socket.socket) -> None:
    """Answer questions until the caller closes its end."""
    ignore_interrupts(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, its core dump would only fill the disk
    _die_with_caller()
    _send(caller, b"ready")
    while True:
        try:
            item = pickle.loads(_receive(caller))
        except ConnectionError:
            return
        _send(caller, _answer(function, item))


def _die_with_caller() -> None:
    """See to it that this process is killed when the caller is gone, even while it hangs in C.

    The kernel kills it with its parent, the fork server, which ends when nobody holds the other end of its pipe; and a
    copy of that end is inherited here.
    """
    die_with_parent(signal.SIGKILL)
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]  # not in typeshed


def _answer(function: Callable[[Any], Any], item: Any) -> bytes:
    """Return the pickle of (result, None), or of (exception, traceback)."""
    try:
        return pickle.dumps((function(item), None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # goes on in the caller
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps((error, trace))
            pickle.loads(answer)
        except Exception:  # exceptions of libraries do not always survive that
            answer = pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return answer


# --- messages ---------------------------------------------------------------------------------------------------------


def _send(end: socket.socket, message: bytes, deadline: float | None = None) -> None:
    """Send ``message`` whole; raise TimeoutError at ``deadline``, ConnectionError if the other side is gone."""
    for part in (_LENGTH.pack(len(message)), message):
        end.settimeout(_left(deadline))
        end.sendall(part)


def _receive(end: socket.socket, deadline: float | None = None) -> bytearray:
    """Return the next message; raise as :func:`_send`."""
    (length,) = _LENGTH.unpack(_read(end, _LENGTH.size, deadline))
    return _read(end, length, deadline)


def _read(end: socket.socket, count: int, deadline: float | None) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        end.settimeout(_left(deadline))
        got = end.recv_into(view)
        if not got:
            raise ConnectionResetError("the other side is gone")
        view = view[got:]
    return data


def _left(deadline: float | None) -> float | None:
    """Return the seconds until ``deadline``; raise TimeoutError if there are none."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise TimeoutError
    return left
