"""SwanLab: its cloud, or a server of one's own (SWANLAB_API_HOST, SWANLAB_API_KEY); SWANLAB_MODE=offline keeps it here.

It plays no MP4, so a video is sent as a GIF with its sound apart.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import swanlab

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.runs.media_reader import Medium
from mmldm_scale.trackers.contract import Scalars, TrackedRun

# What SwanLab would record of this process tells nothing of the run, and a missing key is an error, not a question.
PROBES = ("hardware", "requirements", "conda", "git", "monitor")
SETTINGS = {"interactive": False, "terminal": {"proxy_type": "none"}, "probe": dict.fromkeys(PROBES, False)}
PASSED_ON_AFTER = 2.0  # seconds in which SwanLab's threads pass on what they were given
KINDS = {"picture": swanlab.Image, "video": swanlab.Video, "sound": swanlab.Audio}


class SwanLabRun:
    """A run at SwanLab."""

    def __init__(self, run: TrackedRun) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        with _translated():
            self._run = swanlab.init(
                project=run.project,
                name=run.name,
                id=run.id,
                resume="allow",
                config=run.config,
                log_dir=str(run.folder),
                settings=swanlab.Settings.model_validate(SETTINGS),
            )
        if signal.getsignal(signal.SIGINT) is not interrupt:
            signal.signal(signal.SIGINT, interrupt)  # our handling of Ctrl-C, which swanlab.init has replaced
        self.place = self._run.url if self._run.mode == "online" else f"{run.folder} ({self._run.mode})"
        self.samples_seen = None  # it cannot tell

    def log(self, records: Sequence[Scalars]) -> None:
        """Send ``records``."""
        with _translated():
            for record in records:
                self._run.log(record.values, step=record.samples_seen)

    def show(self, medium: Medium) -> None:
        """Send ``medium``."""
        content = {medium.tag: KINDS[medium.kind](str(medium.gif or medium.file))}
        if medium.sound:
            content[f"{medium.tag}_sound"] = swanlab.Audio(str(medium.sound))
        with _translated():
            self._run.log(content, step=medium.samples_seen)

    def flush(self) -> None:
        """Wait until SwanLab's threads have passed on what was sent, and write it to its file."""
        time.sleep(PASSED_ON_AFTER)
        self._run._core._store.ensure_flushed()

    def close(self) -> None:
        """Wait until everything has arrived."""
        with _translated():
            self._run.finish()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except swanlab.exceptions.ApiError as error:
        raise (Outage if error.retryable else UserError)(f"--to swanlab: {' '.join(str(error).split())}") from None
    except (swanlab.exceptions.AuthenticationError, RuntimeError) as error:
        missing = "no API key" in str(error)  # a wrong key and a server that does not answer look alike
        raise (UserError if missing else Outage)(f"--to swanlab: {' '.join(str(error).split())}") from None
