"""Hostile input under guard: a process that may be lost reads it, and nothing it does outside its folder goes unseen.

    guard.run("settings", count, trial, folder)     # trial(folder, number) -> what became of input `number`

Each trial has a new folder, in which alone it may write. It fails if it runs a program, loads code by pickle, writes
elsewhere, takes more than 30 s, ends its process, or raises anything but an error that is documented, in one line.
"""

import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.launching import process_pool
from data_tools.launching.process_pool import default_workers
from data_tools.launching.progress import Progress
from mmldm_scale.common.errors import UserError
from mmldm_scale.media.clip import MediaError
from tests.support.faults import fault_trials

LIMIT = 30.0  # seconds
TRAP = "touch was_here"  # a command that hostile input tries to run
_RUNNING = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect"}
_CHANGING = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Trial = Callable[[Path, int], str]


@dataclass(frozen=True)
class Seen:
    """What became of one input, and what was wrong with that, if anything."""

    outcome: str
    failure: str = ""


class _Watch:
    """What this process does outside ``folder`` while there is one; hooks of Python's own auditing stay for good."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.plain: frozenset[str] = frozenset()  # classes that pickles may name
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _RUNNING:
            self.seen.append(f"{event} {args!r:.200}")
        elif event == "pickle.find_class" and f"{args[0]}.{args[1]}" not in self.plain:
            self.seen.append(f"unpickled {args[0]}.{args[1]}")
        elif (event == "open" and args[2] & _WRITING) or event in _CHANGING:
            paths = args[:2] if event in ("os.rename", "os.link") else args[1:2] if event == "os.symlink" else args[:1]
            self.seen += [f"{event} {path!r}" for path in paths if self._outside(path)]

    def _outside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor that was opened before
        place = Path(os.path.realpath(os.fsdecode(path)))
        return (
            not place.is_relative_to(self.folder) and place.parent.name != "__pycache__" and place != Path("/dev/null")
        )


_watch: _Watch | None = None  # of this process


@dataclass(frozen=True)
class Guarded:
    """Calls ``trial`` in a new folder below ``folder`` and says what it did; documented errors are outcomes."""

    trial: Trial
    folder: Path
    documented: tuple[type[Exception], ...]
    plain: frozenset[str]

    def __call__(self, number: int) -> Seen:
        global _watch
        _watch = _watch or _Watch()
        inside = Path(os.path.realpath(self.folder)) / str(number)
        inside.mkdir()
        os.chdir(inside)
        tempfile.tempdir = str(inside)  # where libraries put what they do not keep
        _watch.folder, _watch.plain, _watch.seen, failure = inside, self.plain, [], ""
        try:
            outcome = self.trial(inside, number)
        except self.documented as error:
            outcome = type(error).__name__
            failure = "" if "\n" not in str(error) else f"more than a line: {error}"
        except Exception as error:
            outcome, failure = type(error).__name__, traceback.format_exc(limit=-6)
        finally:
            _watch.folder = None
        failure = failure or "; ".join(_watch.seen)
        if (inside / TRAP.split()[-1]).exists():
            failure = f"ran {TRAP!r}"
        os.chdir(self.folder)
        if not failure:
            shutil.rmtree(inside)  # else it stays, to be looked at
        return Seen(outcome, failure)


def run(
    name: str,
    count: int,
    trial: Trial,
    folder: Path,
    documented: tuple[type[Exception], ...] = (UserError,),
    plain: frozenset[str] = frozenset(),
) -> None:
    """Run ``count`` trials of ``trial`` under guard in ``folder``, count what became of them and report it.

    Args:
        trial: can be pickled.
        documented: the errors that it may raise.
        plain: names of plain types that pickles may refer to.
    """
    before = sorted(folder.parent.iterdir())
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    guarded = Guarded(trial, folder, documented, plain)
    with Progress(count, name, "trials") as bar:
        for number, seen in enumerate(process_pool.map(guarded, range(count), default_workers(), LIMIT)):
            if isinstance(seen, MediaError):
                failures.append(f"trial {number}: {seen}")
            elif seen.failure:
                failures.append(f"trial {number}: {seen.failure}")
            else:
                outcomes[seen.outcome] += 1
            bar.update()
    if sorted(folder.parent.iterdir()) != before:
        failures.append(f"left in {folder.parent}: {set(folder.parent.iterdir()) - set(before)}")
    fault_trials.report(name, outcomes, failures)
