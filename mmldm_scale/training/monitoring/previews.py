"""What a run shows of its model at ``training.preview_every``: pictures, video and sound in TensorBoard."""

import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from mmldm_scale.common.errors import UserError
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.training.engine.deepspeed_engine import averaged_state
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring.logger import Monitor
from mmldm_scale.training.resilience.watchdog import Watchdog
from mmldm_scale.training.trainable import Trainable

IMPOSSIBLE = (UserError, OSError, SafetensorError, MemoryError, torch.OutOfMemoryError)  # no reason to end a run


class Previews:
    """The previews of a run; all ranks make one together."""

    def __init__(self, trainable: Trainable, engine: Engine, world: World, watchdog: Watchdog) -> None:
        self._trainable, self._engine, self._world, self._watchdog = trainable, engine, world, watchdog
        self._samples = trainable.samples

    def show(self, samples_seen: int, monitor: Monitor | None, averaged: bool) -> None:
        """Show the model as it is, and if there are averages yet, samples of those; all ranks call this together."""
        writer = monitor.media(samples_seen) if monitor else Unseen()
        if self._trainable.preview:
            self._watchdog.heartbeat("preview", samples_seen)
            self._engine.eval()
            with torch.no_grad():
                self._trainable.preview(self._engine.module, writer)
            self._engine.train()
        if self._samples and averaged:
            self._sample(samples_seen, writer)

    def _sample(self, samples_seen: int, writer: Preview) -> None:
        """Have the first rank sample, while the others wait for it one piece after another.

        No piece, such as a clip, may take longer than the watchdog waits. What makes sampling impossible is said, and
        it is not tried again.
        """
        self._watchdog.heartbeat("preview", samples_seen)
        state = averaged_state(self._engine, self._world)
        pieces = self._samples(state, writer) if self._world.is_rank0 else iter(())
        del state
        while (came := self._world.broadcast_from_rank0(self._next(pieces))) == "more":
            self._watchdog.heartbeat("preview", samples_seen)
        if came == "impossible":
            self._samples = None

    def _next(self, pieces: Iterator[None]) -> Literal["more", "done", "impossible"]:
        """Do the next piece; on the ranks that have none, what they return counts for nothing."""
        try:
            next(pieces)
            return "more"
        except StopIteration:
            return "done"
        except IMPOSSIBLE as error:
            reason = " ".join(str(error).split())[:300]
            print(f"no samples are shown from here on: {reason}", file=sys.stderr, flush=True)
            return "impossible"


class Unseen:
    """The preview of the ranks that do not write: nothing."""

    def image(self, *_: Any) -> None:
        """Show nothing."""

    video = audio = image
