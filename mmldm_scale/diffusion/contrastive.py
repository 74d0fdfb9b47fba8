"""A contrastive loss for synchrony: denoising a matching audio-video pair must be easier than a mismatched one.

CMMD (arXiv 2312.05412) adds a joint contrastive loss to the diffusion loss. Its equations are not public; the loss here
is our own, in its style. Besides its true pairing, each sample is denoised in three wrong ones, with the same noise n_a
and n_v, at the same timestep and under the same conditions, except for the exchanged latents:

    0   its audio                      its video            the true pairing
    1   another clip's audio           its video
    2   its audio, shifted in time     its video
    3   its audio                      another clip's video

With e_v(k) and e_a(k) the mean squared errors of the predictions for video and audio in pairing k, and τ the
temperature, each modality has to identify its true partner by its own error:

    ½ · [−log softmax(−e_v(0..2) / τ)_0 − log softmax(−e_a(0, 3) / τ)_0]

which is ½ · (log 3 + log 2) = 0.896 for a network that cannot tell them apart. Min-SNR weighting does not apply to it.

The last axis of the audio latent is time: the time of the audio image runs to the right, and the encoders keep its
axes. A shift is circular. The video latent has no time axis (the frames of a clip are in its channels), so it is not
shifted.
"""

import torch
from torch import Tensor

from mmldm_scale.common import rng

PASSES = 4  # forward passes of a sample through the network: one for each pairing
PARTNERS = ("other_audio", "shifted_audio", "other_video")  # keys of a batch for the wrong pairings


def draw_shift(columns: int, seed: int, position: int) -> int:
    """Return by how many of its ``columns`` (at least 2) the audio latent of the sample at ``position`` is shifted.

    Uniform over all circular shifts by at least a quarter of the clip in either direction.
    """
    least = max(1, columns // 4)
    return int(rng.generator(seed, "dit/contrastive/shift", position).integers(least, columns - least, endpoint=True))


def wrong_pairings(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return pairings 1, 2 and 3 of all samples, concatenated: a batch (3B, …) without the keys ``PARTNERS``.

    Args:
        batch: as :func:`~mmldm_scale.diffusion.loss.losses` takes it, with "other_audio" and "shifted_audio"
            shaped like "audio", and "other_video" like "video".
    """
    own = {name: value for name, value in batch.items() if name not in PARTNERS}
    pairings = [own | {name.partition("_")[2]: batch[name]} for name in PARTNERS]
    return {name: torch.cat([pairing[name] for pairing in pairings]) for name in own}


def contrast(true: tuple[Tensor, Tensor], wrong: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Return the contrastive loss of each sample, (B,), from its errors for audio and video.

    Args:
        true: e_a and e_v of pairing 0, (B,) each.
        wrong: e_a and e_v of :func:`wrong_pairings`, (3B,) each.
    """
    audio, video = (
        torch.stack([right, *others.chunk(3)]) for right, others in zip(true, wrong, strict=True)
    )  # (4, B): by pairing
    by_video = (-video[:3] / temperature).log_softmax(dim=0)[0]
    by_audio = (-audio[[0, 3]] / temperature).log_softmax(dim=0)[0]
    return -(by_video + by_audio) / 2
