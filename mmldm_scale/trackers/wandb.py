"""Weights & Biases. It reads its own settings from the environment: WANDB_MODE=offline, WANDB_ENTITY, WANDB_BASE_URL.

W&B's own process writes what is sent to ``runs/NAME/trackers/wandb/``, and sends it on as soon as it can. The samples
seen are the horizontal axis of all curves, rather than W&B's own count of calls, which must not decrease.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import wandb

from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.runs.media_reader import Medium
from mmldm_scale.trackers.contract import Scalars, TrackedRun

STEP = "samples_seen"
WRITTEN_AFTER = 1.0  # seconds that W&B holds what was sent in memory
# What W&B would record of this process tells nothing of the run.
SILENT = {"console": "off", "disable_git": True, "quiet": True, "x_disable_stats": True, "x_save_requirements": False}
SETTINGS = SILENT | {"x_transaction_log_flush_interval": WRITTEN_AFTER}
KINDS = {"picture": wandb.Image, "video": wandb.Video, "sound": wandb.Audio}


class WandbRun:
    """A run at W&B."""

    def __init__(self, run: TrackedRun) -> None:
        try:
            with _translated():
                names = {"project": run.project, "id": run.id, "name": run.name, "dir": run.folder}
                settings = wandb.Settings(**SETTINGS)
                self._run = wandb.init(**names, config=run.config, resume="allow", settings=settings)
        except Outage:
            wandb.teardown()  # else the next attempt finds the run in use
            raise
        offline = self._run.offline
        self.place = f"{run.folder} (offline: wandb sync sends it)" if offline else str(self._run.url)
        self.samples_seen = None if offline else self._last()
        self._run.define_metric(STEP, summary="max")
        self._run.define_metric("*", step_metric=STEP)

    def log(self, records: Sequence[Scalars]) -> None:
        """Send ``records``."""
        with _translated():
            for record in records:
                self._run.log({**record.values, STEP: record.samples_seen, "_timestamp": record.time})

    def show(self, medium: Medium) -> None:
        """Send ``medium``."""
        with _translated():
            self._run.log({medium.tag: KINDS[medium.kind](str(medium.file)), STEP: medium.samples_seen})

    def flush(self) -> None:
        """Wait until W&B's process has written what was sent to its file."""
        time.sleep(2 * WRITTEN_AFTER)

    def close(self) -> None:
        """Wait until everything has arrived."""
        with _translated():
            self._run.finish()

    def _last(self) -> int:
        """Return the samples seen of the last record that W&B has; -1: it has none."""
        last = self._run.summary.get(STEP, -1)
        return int(last if isinstance(last, (int, float)) else last["max"])


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise UserError(f"--to wandb: {' '.join(str(error).split())}") from None
    except wandb.errors.CommError as error:
        raise Outage(str(error)) from None
