"""What a sample costs, in MACs (multiply-accumulates) by stage, from the models' descriptions alone.

svg: a sample costs 83.4 TMACs: denoise 1.85 (50 steps), decode 81.6 (signal decoder 76.3: 17 pictures, 50 steps;
KL-VAE 5.29); the vocoder is not counted
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import Sampling
from mmldm_scale.diffusion.guidance import Guidance
from mmldm_scale.diffusion.tasks import TASKS, GenerationTask
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.sizes import decoding_macs
from mmldm_scale.models.flops import dit_macs
from mmldm_scale.sampling.description import DiTDescription
from mmldm_scale.sampling.windows import window_count

TERA = 1e12


@dataclass(frozen=True)
class Cost:
    """MACs of one sample.

    Attributes:
        denoising: of the DiT in all its steps, with guidance.
        signal_decoder: of the U-Net in all its steps, for all pictures, with guidance.
        kl_vae: of the KL-VAE's decoder for all pictures.
        steps: of the DiT.
        decoding_steps: of the signal decoder.
        pictures: that the signal decoder draws: the frames and the audio image, without what is given.
    """

    denoising: int
    signal_decoder: int
    kl_vae: int
    steps: int
    decoding_steps: int
    pictures: int

    @property
    def decoding(self) -> int:
        """Of signal decoder and KL-VAE."""
        return self.signal_decoder + self.kl_vae

    def __str__(self) -> str:
        """Return it in a line: "a sample costs 83.2 TMACs: …"."""
        total, denoising, decoding, drawing, rendering = (
            f"{macs / TERA:.3g}"
            for macs in (
                self.denoising + self.decoding,
                self.denoising,
                self.decoding,
                self.signal_decoder,
                self.kl_vae,
            )
        )
        pictures = "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"
        return (
            f"a sample costs {total} TMACs: denoise {denoising} ({self.steps} steps), decode {decoding} (signal "
            f"decoder {drawing}: {pictures}, {self.decoding_steps} steps; KL-VAE {rendering}); "
            "the vocoder is not counted"
        )


def sample_cost(
    description: DiTDescription,
    autoencoder: Path,
    settings: Sampling,
    task: GenerationTask,
    context: str | None = None,
    seconds: float | None = None,
) -> Cost:
    """Return what a sample costs; the models are built on shapes alone, and no weights are read.

    Args:
        autoencoder: its weights folder.
        context: "label" for a class, "context" for a text; None: the samples have neither.
        seconds: length of the sample; None: one clip.

    Raises:
        UserError: ``seconds`` is out of range.
    """
    forward = dit_macs(description.model, description.audio_shape, description.video_shape)
    picture, rendered = _decoding_macs(autoencoder)
    decoding, windows = settings.decoding, window_count(description.media, description.sample_media(seconds))
    counts = {"audio": 1, "video": description.media.frames}
    scales = {"audio": decoding.audio_guidance, "video": decoding.video_guidance}
    made = [name for name in TASKS[task].generated if name in description.shapes]
    pictures = windows * sum(counts[name] for name in made)
    drawn = windows * sum(counts[name] * (2 if scales[name] > 1 else 1) for name in made)
    first = _passes(description, settings, task, context, TASKS[task].previous)
    others = _passes(description, settings, task, context, tuple(description.shapes)) if windows > 1 else 0
    return Cost(
        denoising=(forward.linear + forward.attention) * (first + (windows - 1) * others),
        signal_decoder=picture * drawn * decoding.steps,
        kl_vae=rendered * pictures,
        steps=settings.steps * windows,
        decoding_steps=decoding.steps,
        pictures=pictures,
    )


def _passes(
    description: DiTDescription,
    settings: Sampling,
    task: GenerationTask,
    context: str | None,
    previous: Sequence[Modality],
) -> int:
    """Return how often the DiT computes a window: in each step once for each branch of its guidance."""
    scales = {"audio": settings.audio_guidance, "video": settings.video_guidance}
    low, high = settings.guidance_interval
    guidance = Guidance(scales, settings.class_guidance, (low, high))
    given = TASKS[task].given
    conditions = [f"previous_{name}" for name in previous]
    conditions += [*([f"{given}_condition"] if given else []), *([context] if context else [])]
    generated = [name for name in description.shapes if name != given]
    passes = 0
    for step in range(settings.steps):
        weights = [guidance.weights((step + 1) / settings.steps, name, conditions) for name in generated]
        passes += sum(any(branch) for branch in zip(*weights, strict=True))
    return passes


@functools.lru_cache
def _decoding_macs(autoencoder: Path) -> tuple[int, int]:
    """Return the MACs of a step of the signal decoder, and of the KL-VAE's decoder, for one picture."""
    with torch.device("meta"):
        return decoding_macs(Autoencoder.from_description(autoencoder))
