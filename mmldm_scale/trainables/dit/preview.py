"""The trainable "dit" of ``mmldm train`` with samples of its averaged weights to look at and listen to.

Training shows them at ``training.preview_every``, but cannot sample by itself: what turns weights into clips is here.
"""

import dataclasses
import functools
import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.models import pretrained
from mmldm_scale.trainables.dit import trainable as dit_trainable
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.monitoring.logger import show
from mmldm_scale.training.trainable import Preview, Trainable

Write = Callable[[Path, dict[str, Tensor]], None]


def build_trainable(config: DiTTraining) -> Trainable:
    """Return the trainable of :mod:`mmldm_scale.trainables.dit.trainable` with its samples.

    Raises:
        UserError: as there, or the first rank, which makes them, finds no autoencoder where the configuration says.
    """
    trainable = dit_trainable.build_trainable(config)
    if not config.preview.samples:
        return trainable
    first = not (dist.is_initialized() and dist.get_rank())
    startup_messages = (
        _startup_messages(config, trainable.dataset.samples.mixture.manifest.autoencoder["path"]) if first else []
    )
    samples = functools.partial(_samples, config, trainable.write_weights)
    return dataclasses.replace(
        trainable, samples=samples, startup_messages=[*trainable.startup_messages, *startup_messages]
    )


def _startup_messages(config: DiTTraining, lay: str) -> list[str]:
    """Say at the start, not at the first preview, if there is no autoencoder; it may be put back where it ``lay``."""
    try:
        pretrained.find(config.preview.autoencoder or lay, "autoencoder")
    except UserError as error:
        if config.preview.autoencoder:
            raise UserError(f"preview.autoencoder: {error}") from None
        return [f"there will be no samples to look at: {error}; preview.autoencoder=DIR says where it lies now"]
    return []


def _samples(config: DiTTraining, write_weights: Write, state: dict[str, Tensor], preview: Preview) -> Iterator[None]:
    """Show samples of the weights ``state``, the same in noise every time; between them, let the caller breathe.

    The weights pass through a folder, as those do that ``mmldm sample`` reads, and no model stays in memory.

    Raises:
        UserError: the autoencoder is not where it lay, or the settings cannot work.
    """
    from mmldm_scale.sampling.pipeline import Pipeline  # a training that shows nothing would wait for its libraries

    folder = Path(config.run) / "preview.tmp"
    settings = Sampling(
        steps=config.preview.steps,
        decoding=DecodingConfig(steps=config.preview.decoding_steps),
        attention=config.model.attention,
        precision=config.training.precision,
    )
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        write_weights(folder, state)
        del state
        yield
        pipeline = Pipeline.from_pretrained(folder, settings, config.preview.autoencoder or None, device)
        yield
        for index in range(config.preview.samples):
            with _uncompiled(config):
                (clip,) = pipeline.generate("svg", [index])
            show(preview, f"svg/{index}", clip, pipeline.media)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        pipeline = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _uncompiled(config: DiTTraining) -> AbstractContextManager[Any]:
    """Return a context without torch.compile: a graph for so few steps would take longer than they do."""
    return torch.compiler.set_stance("force_eager") if config.model.compile else nullcontext()
