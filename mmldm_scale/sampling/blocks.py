"""Blocks of samples: denoised, decoded and written, each by a thread of its own, so that consecutive blocks overlap.

A block is leased before it is begun, and until all of its files are written. Its clips are computed some at a time
(:mod:`.together`). Which clips go together depends on their places in the block alone, so a sample is the same, bit for
bit, whichever process makes it and whichever samples of its block are missing, as long as as many go together.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from tqdm import tqdm

from mmldm_scale.common.leases import Leases
from mmldm_scale.diffusion.guided_sampling import Latents
from mmldm_scale.media.clip import Clip
from mmldm_scale.runs.event_file import EventFile
from mmldm_scale.runs.media_log import MediaWriter, show
from mmldm_scale.sampling import together
from mmldm_scale.sampling.inputs import Wanted
from mmldm_scale.sampling.pipeline import Pipeline
from mmldm_scale.sampling.processes import Place
from mmldm_scale.sampling.progress import Progress
from mmldm_scale.sampling.prompts import TextContexts
from mmldm_scale.sampling.records import SampleRecords
from mmldm_scale.sampling.sample_files import SampleFiles
from mmldm_scale.sampling.stage_times import StageTimes
from mmldm_scale.sampling.stages import Stages
from mmldm_scale.sampling.together import Together

SHOWN = 4  # number of samples of a job that are written to TensorBoard
WRITERS = 4  # threads that encode and write samples: H.264, AAC, PNG and zlib release the interpreter


@dataclass(frozen=True)
class Conditions:
    """What all samples of a job are made from.

    Attributes:
        label: their class; None: they have none.
        wanted: what each input must have.
        contexts: their prompts; None: they have none.
        seconds: their length; None: one clip.
    """

    label: str | None
    wanted: Wanted
    contexts: TextContexts | None
    seconds: float | None


@dataclass(frozen=True)
class _Part:
    """Clips of a block that were computed together: their indices, what they start from, and each window's latents."""

    indices: range
    sources: list[Clip]
    windows: list[Latents]


@dataclass(frozen=True)
class _Denoised:
    block: range
    parts: list[_Part]


@dataclass(frozen=True)
class _Decoded:
    """The clips of a block, and what they start from, by index."""

    block: range
    clips: dict[int, Clip]
    sources: dict[int, Clip]


class SamplingJob:
    """Generates blocks of samples and writes them to a folder.

    Args:
        size: samples of a whole block.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        files: SampleFiles,
        records: SampleRecords,
        leases: Leases,
        conditions: Conditions,
        place: Place,
        size: int,
    ) -> None:
        self.pipeline, self.files, self.records, self._leases, self._place = pipeline, files, records, leases, place
        self._conditions, self._size = conditions, size
        self._shown = 0
        self._events: EventFile | None = None
        self._times = StageTimes.of_process(place.rank)
        self._stages = Stages()
        self._together = Together(1, files.task)

    def generate(self, blocks: Sequence[range], all_blocks: Sequence[range]) -> None:
        """Generate the samples of ``blocks`` and write those that are missing; leave blocks to jobs that make them.

        Args:
            all_blocks: of the whole job, for the progress.
        """
        events = EventFile(self.files.folder / "tensorboard") if self._place.rank == 0 else nullcontext()
        progress = Progress(self.files, all_blocks, lambda: self._times, self._place.speaks)
        # A stage that computes checks at every layer whether the job is to end; Griffin-Lim is a layer, too.
        with events as self._events, progress, register_module_forward_pre_hook(self._stages.check):
            self._together.count = self._count(blocks)
            stages: list[Callable[[Any], Any]] = [self._denoise, self._decode, self._write]
            self._stages.run(self._leased(blocks), stages, progress.look)

    def _count(self, blocks: Sequence[range]) -> int:
        """Return how many clips are computed together to begin with."""
        given, device = self.pipeline.settings.clips_together, self.pipeline.device
        if given is not None:
            return min(given, self._size)
        trial = _trial(self.pipeline)
        first = blocks[0].start
        sources = self._sources(range(first, first + self._size)) if device.type == "cuda" else []
        task, windows = self.files.task, list[Latents]()

        def denoise(clips: range) -> None:
            nonlocal windows
            windows = self._windows(trial, clips, sources[: len(clips)])

        def decode(clips: range) -> None:
            trial.join(task, clips, windows, self._conditions.seconds)

        count = together.measure([denoise, decode], self._size, device)
        if device.type == "cuda" and self._place.speaks:
            tqdm.write(f"{task}: {count} clips are computed together, as was measured", file=sys.stderr)
        return count

    def _leased(self, blocks: Sequence[range]) -> Iterator[range]:
        """Yield those of ``blocks`` that no other process makes or has made meanwhile."""
        for block in blocks:
            if not self._leases.take(self.files.lease(block)):
                if self._place.count == 1:
                    text = f"another job is making samples {block.start} to {block.stop - 1}"
                    tqdm.write(text, file=sys.stderr)
            elif self.files.missing(block):
                self.files.remove_leftovers(block)
                yield block
            else:
                self._leases.release(self.files.lease(block))

    def _denoise(self, block: range) -> _Denoised:
        device = self.pipeline.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread

        def compute(indices: range) -> _Part:
            with self._times.measured("denoise", len(indices)):
                sources = self._sources(indices)
                windows = self._windows(self.pipeline, indices, sources)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            return _Part(indices, sources, windows)

        whole = range(block.start, block.start + self._size)  # the last one, too, though it may have fewer samples
        parts = self._together.compute(whole, self._needed(block), compute)
        return _Denoised(block, [part for _, part in parts])

    def _decode(self, denoised: _Denoised) -> _Decoded:
        if self.pipeline.device.type == "cuda":
            torch.cuda.set_device(self.pipeline.device)
        decoded = _Decoded(denoised.block, {}, {})
        for part in denoised.parts:
            self._decode_part(part, decoded)
        return decoded

    def _decode_part(self, part: _Part, decoded: _Decoded) -> None:
        """Add the clips of ``part`` to ``decoded``."""

        def compute(positions: range) -> list[Clip]:
            rows = slice(positions.start, positions.stop)
            with self._times.measured("decode", len(positions)):
                windows = [latents.rows(rows) for latents in part.windows]
                return self.pipeline.join(self.files.task, part.indices[rows], windows, self._conditions.seconds)

        positions = range(len(part.indices))
        clips = [clip for _, group in self._together.compute(positions, positions, compute) for clip in group]
        clips = self.pipeline.with_given(self.files.task, clips, part.sources)
        decoded.clips.update(zip(part.indices, clips, strict=True))
        decoded.sources.update(zip(part.indices, part.sources, strict=False))

    def _write(self, decoded: _Decoded) -> None:
        """Write the missing files of a block, and release its lease."""
        block, lease = decoded.block, self.files.lease(decoded.block)
        indices = [index for index in block if not self.files.file(index).exists()]
        with self._times.measured("write", len(indices)):
            with ThreadPoolExecutor(WRITERS, thread_name_prefix="writer") as writers:
                list(writers.map(lambda index: self._write_sample(index, decoded), indices))
            for index in indices:
                self._show(index, decoded.clips[index])
            if self.files.lossless is not None and self.files.lossless.missing(block):
                contents = [self.records.content(index) for index in block]
                clips = [decoded.clips[index] for index in block]
                self.files.lossless.write(block, clips, contents, self._leases, lease)
        self._leases.release(lease)

    def _write_sample(self, index: int, decoded: _Decoded) -> None:
        """Write sample ``index``; its file is written last, so that it implies the others."""
        self._stages.check()
        if index in decoded.sources:
            self.files.write_input(index, decoded.sources[index])
        self.records.write(index)
        self.files.write(index, decoded.clips[index])

    def _show(self, index: int, clip: Clip) -> None:
        if self._events is not None and self._shown < SHOWN:
            self._shown += 1
            show(MediaWriter(self._events, 0), f"{self.files.task}/{index:06d}", clip, self.files.media)

    def _needed(self, block: range) -> list[int]:
        """Return the samples of ``block`` that have to be computed: all if their lossless tar is missing."""
        if self.files.shard_missing(block):
            return list(block)
        return [index for index in block if not self.files.file(index).exists()]

    def _windows(self, pipeline: Pipeline, indices: range, sources: list[Clip]) -> list[Latents]:
        """Return the latents of each window of the samples ``indices``, which start from ``sources``."""
        label, contexts = self._conditions.label, self._conditions.contexts
        labels = [] if label is None else [label] * len(indices)
        embeddings = [contexts.embedding(index) for index in indices] if contexts else []
        return pipeline.windows(self.files.task, indices, sources, labels, embeddings, self._conditions.seconds)

    def _sources(self, block: range) -> list[Clip]:
        """Return what the samples ``block`` start from; [] if the task takes no input."""
        wanted = self._conditions.wanted
        return [source.read(wanted) for source in map(self.records.source, block) if source]


def _trial(pipeline: Pipeline) -> Pipeline:
    """Return ``pipeline`` with as few steps as each stage can take and no vocoder, which takes no memory of the GPU.

    Its step of the DiT is guided as most steps are, though it is the first one.
    """
    trial, settings, distillation = copy.copy(pipeline), pipeline.settings, pipeline.autoencoder.distillation
    decoding = replace(settings.decoding, steps=min(distillation.steps) if distillation else 1)
    trial.settings = replace(settings, steps=1, decoding=decoding, guidance_interval=[0.0, 1.0])
    trial.vocoder = None
    return trial
