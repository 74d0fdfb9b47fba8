"""Samples of a DiT's averaged weights, shown while it trains (``training.preview_every``)."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mmldm_scale.common.device import training_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.models import pretrained
from mmldm_scale.runs.media_log import Preview, show
from mmldm_scale.trainables.dit.config import DiTTraining

WriteWeights = Callable[[Path, dict[str, Tensor]], None]


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
    config: DiTTraining, write_weights: WriteWeights, state: dict[str, Tensor], writer: Preview
) -> Iterator[None]:
    """Show samples of the weights ``state``, always of the same noise; yield between two of them.

    The weights pass through a folder, like those that ``mmldm sample`` reads, and no model stays in memory.

    Raises:
        UserError: the autoencoder is missing, or the settings cannot work.
    """
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
        for index in range(config.preview.samples):
            with _uncompiled(config):
                (clip,) = pipeline.generate("svg", [index])
            show(writer, f"svg/{index}", clip, pipeline.media)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        pipeline = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _uncompiled(config: DiTTraining) -> AbstractContextManager[object]:
    """Return a context without torch.compile: compiling takes longer than these few steps."""
    return torch.compiler.set_stance("force_eager") if config.model.compile else nullcontext()
