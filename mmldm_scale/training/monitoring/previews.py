"""Previews of the model in TensorBoard every ``training.preview_every`` samples: images, videos and audio."""

import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from mmldm_scale.common.atomic_files import full_disk_reason
from mmldm_scale.common.errors import UserError
from mmldm_scale.runs.media_log import Preview
from mmldm_scale.training.engine.deepspeed_engine import averaged_state
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import World
from mmldm_scale.training.monitoring.logger import Logger
from mmldm_scale.training.resilience.watchdog import Watchdog
from mmldm_scale.training.trainable import Trainable

FAILURES = (UserError, OSError, SafetensorError, MemoryError, torch.OutOfMemoryError)  # end sampling, not the run
REASON_LENGTH = 300  # characters of an error's message that are printed


class Previews:
    """Shows the previews of a run; all ranks call its methods together."""

    def __init__(self, trainable: Trainable, engine: Engine, world: World, watchdog: Watchdog) -> None:
        self._trainable, self._engine, self._world, self._watchdog = trainable, engine, world, watchdog
        self._samples = trainable.samples

    def show(self, samples_seen: int, logger: Logger | None, averaged: bool) -> None:
        """Show the trainable's preview and, if ``averaged`` weights exist, samples of these."""
        writer = logger.media(samples_seen) if logger else NoPreview()
        if self._trainable.preview:
            self._watchdog.heartbeat("preview", samples_seen)
            self._engine.eval()
            with torch.no_grad():
                self._trainable.preview(self._engine.module, writer)
            self._engine.train()
        if averaged:
            self._sample(samples_seen, writer)

    def _sample(self, samples_seen: int, writer: Preview) -> None:
        """Sample on rank 0, while the other ranks wait; they exchange a message after each sample.

        A single sample must not take longer than ``training.collective_timeout``. After a failure, which is printed,
        sampling is not tried again, unless the disk was full.
        """
        if self._samples is None:
            return
        self._watchdog.heartbeat("preview", samples_seen)
        state = averaged_state(self._engine, self._world)
        samples = self._samples(state, writer) if self._world.is_rank0 else iter(())
        del state
        while (outcome := self._world.broadcast_from_rank0(self._next(samples))) == "more":
            self._watchdog.heartbeat("preview", samples_seen)
        if outcome == "failed":
            self._samples = None

    def _next(self, samples: Iterator[None]) -> Literal["more", "done", "failed"]:
        """Make the next sample; only rank 0's result is used."""
        try:
            next(samples)
            return "more"
        except StopIteration:
            return "done"
        except FAILURES as error:
            full = full_disk_reason(error)
            if full:
                print(f"this preview shows no further samples: {full}", file=sys.stderr, flush=True)
                return "done"
            reason = " ".join(str(error).split())[:REASON_LENGTH]
            print(f"previews show no samples from here on: {reason}", file=sys.stderr, flush=True)
            return "failed"


class NoPreview:
    """The preview of the ranks that do not write: it shows nothing."""

    def image(self, *_: Any) -> None:
        """Show nothing."""

    video = audio = image
