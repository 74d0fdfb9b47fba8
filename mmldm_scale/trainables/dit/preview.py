"""Samples of a DiT's averaged weights, shown while it trains (``training.preview_every``)."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mmldm_scale.common.device import training_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import DecodingConfig, MediaConfig, Sampling
from mmldm_scale.diffusion.tasks import GIVEN, GenerationTask
from mmldm_scale.media.clip import NO_FRAMES, NO_SOUND, Clip
from mmldm_scale.models import pretrained
from mmldm_scale.runs.media_log import Preview, show
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.trainable import Batch

WriteWeights = Callable[[Path, dict[str, Tensor]], None]
ReadSample = Callable[[int], Batch]
CONDITIONAL: tuple[GenerationTask, ...] = ("a2v", "v2a")


def startup_messages(config: DiTTraining, autoencoder: str) -> list[str]:
    """Return a warning if the autoencoder of the samples is missing, so that the user sees it before the first preview.

    Rank 0 alone checks, since it alone makes samples.

    Args:
        autoencoder: its folder when the latents were made, used unless ``preview.autoencoder`` names another;
            empty if the set names none.

    Raises:
        UserError: ``preview.autoencoder`` is no autoencoder.
    """
    if not config.preview.samples or (dist.is_initialized() and dist.get_rank()):
        return []
    try:
        pretrained.find(config.preview.autoencoder or autoencoder, "autoencoder")
    except UserError as error:
        if config.preview.autoencoder:
            raise UserError(f"preview.autoencoder: {error}") from None
        return [f"previews show no samples: {error}; preview.autoencoder=DIR names its present folder"]
    return []


def show_samples(
    config: DiTTraining, write_weights: WriteWeights, read: ReadSample, state: dict[str, Tensor], writer: Preview
) -> Iterator[None]:
    """Show samples of the weights ``state``, always of the same noise and conditions; yield between two of them.

    They are of all tasks that the model learns, in turn. The condition of a2v and v2a, as the autoencoder restores it
    together with the result, is beside that. The weights pass through a folder, like those that ``mmldm sample`` reads,
    and no model stays in memory.

    Args:
        read: returns a sample by number, with the normalised latents "audio" and "video", (C, H, W).

    Raises:
        UserError: the autoencoder is missing, or the settings cannot work.
    """
    pretrained.find(config.preview.autoencoder, "autoencoder")  # if it is missing, before the slow import
    from mmldm_scale.sampling.pipeline import Pipeline  # a training without previews need not import it

    folder, device = Path(config.run) / "preview.tmp", training_device()
    settings = Sampling(
        steps=config.preview.steps,
        decoding=DecodingConfig(steps=config.preview.decoding_steps),
        attention=config.model.attention,
        precision=config.training.precision,
    )
    pipeline: Pipeline | None = None
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    try:
        write_weights(folder, state)
        del state
        yield
        pipeline = Pipeline.from_pretrained(folder, settings, config.preview.autoencoder or None, device)
        yield
        for task, index in _shown(config):
            given = GIVEN[task]
            condition = read(index)[given][None] if given else None  # (1, C, H, W)
            with _uncompiled(config):
                (clip,) = pipeline.decode(task, [index], pipeline.latents(task, [index], condition=condition))
            _show(writer, f"{task}/{index}", clip, given, pipeline.media)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        pipeline = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _shown(config: DiTTraining) -> list[tuple[GenerationTask, int]]:
    """Return the tasks and numbers of the samples of a preview: svg first, then the others that the model learns."""
    shares = {"a2v": config.diffusion.audio_conditioned, "v2a": config.diffusion.video_conditioned}
    tasks: list[GenerationTask] = ["svg", *(task for task in CONDITIONAL if shares[task])]
    return [(tasks[number % len(tasks)], number // len(tasks)) for number in range(config.preview.samples)]


def _show(writer: Preview, tag: str, clip: Clip, given: Modality | None, media: MediaConfig) -> None:
    """Show what of ``clip`` is generated as ``tag``, and what is given as "TAG/given"."""
    audio, video = replace(clip, frames=NO_FRAMES), replace(clip, waveform=NO_SOUND)
    if given is None:
        show(writer, tag, clip, media)
        return
    show(writer, tag, audio if given == "video" else video, media)
    show(writer, f"{tag}/given", audio if given == "audio" else video, media)


def _uncompiled(config: DiTTraining) -> AbstractContextManager[object]:
    """Return a context without torch.compile: compiling takes longer than these few steps."""
    return torch.compiler.set_stance("force_eager") if config.model.compile else nullcontext()
