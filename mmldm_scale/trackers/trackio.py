"""trackio: a database on this machine (TRACKIO_DIR), a server (TRACKIO_SERVER_URL) or a Hugging Face Space.

It knows a run by its name, so the name carries a part of the id.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

import trackio

from mmldm_scale.common.errors import UserError
from mmldm_scale.runs.media_reader import Medium
from mmldm_scale.trackers.contract import Scalars, TrackedRun

KINDS = {"picture": trackio.Image, "video": trackio.Video, "sound": trackio.Audio}


class TrackioRun:
    """A run of trackio."""

    def __init__(self, run: TrackedRun) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._run = trackio.init(
                    project=run.project,
                    name=f"{run.name}-{run.id[:8]}",
                    config=run.config,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,  # those of this process tell nothing of the run
                    auto_log_cpu=False,
                )
        except ValueError as error:  # such as a server without a token
            raise UserError(f"--to trackio: {' '.join(str(error).split())}") from None
        self.place = f"trackio show --project {run.project}"
        self.samples_seen = self._run._next_step - 1  # with resume="allow" the step after the last one that it has

    def log(self, records: Sequence[Scalars]) -> None:
        """Send ``records``."""
        for record in records:
            self._run.log(record.values, step=record.samples_seen)

    def show(self, medium: Medium) -> None:
        """Send ``medium``."""
        self._run.log({medium.tag: KINDS[medium.kind](str(medium.file))}, step=medium.samples_seen)

    def flush(self) -> None:
        """Wait until trackio's thread has stored what was sent, on this machine if its server does not answer."""
        while self._run._queued_logs or self._run._sending_batch:
            time.sleep(0.05)

    def close(self) -> None:
        """Wait until everything is stored."""
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()
