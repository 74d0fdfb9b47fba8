"""A contrastive loss for synchrony: denoising a matching audio-video pair must be easier than a mismatched one.

CMMD (arXiv 2312.05412) adds a joint contrastive loss to the diffusion loss. Its equations are not public; the loss here
is our own, in its style. Besides its true pairing, each sample is denoised in three wrong ones, with the same noise n_a
and n_v, at the same timestep and under the same conditions, except for the exchanged latents:

    0   its audio                                      its video            the true pairing
    1   another clip's audio                           its video
    2   audio of another window of the same video      its video
    3   its audio                                      another clip's video

With e_v(k) and e_a(k) the mean squared errors of the predictions for video and audio in pairing k, and τ the
temperature, each modality has to identify its true partner by its own error:

    ½ · [−log softmax(−e_v(0..2) / τ)_0 − log softmax(−e_a(0, 3) / τ)_0]

which is ½ · (log 3 + log 2) = 0.896 for a network that cannot tell them apart. Min-SNR weighting does not apply to it.

Pairing 2 is the one that only synchrony can tell: the sound is of the right video, but of another time. The window is
at least half a clip away, and is drawn such that as a partner each window is as frequent as among the samples that have
one (:meth:`mmldm_scale.shards.mixture.Mixture.displaced_index`). A sample without such a window does without pairing 2:
its softmax runs over pairings 0 and 1, and a network that cannot tell them apart has log 2 = 0.693. Sound that is
shifted within the clip would not do, since a shifted latent shows by itself that it is shifted: sound does not go on
across its ends, and the encoder's borders are in its middle.

Nor would a sample do that sees the previous clip: in the wrong pairings, sound or pictures do not go on where that clip
ends, which tells them without synchrony. So the configuration allows the loss only with ``diffusion.continued`` of 0.
"""

import torch
from torch import Tensor

PASSES = 4  # forward passes of a sample through the network: one for each pairing
PARTNERS = ("other_audio", "displaced_audio", "other_video")  # keys of a batch for the wrong pairings


def wrong_pairings(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return pairings 1, 2 and 3 of all samples, concatenated: a batch (3B, …) without the keys ``PARTNERS``.

    Args:
        batch: as :func:`~mmldm_scale.diffusion.loss.losses` takes it, with "other_audio" and "displaced_audio" (of
            another window of the sample's video) (B, C, Ha, Wa) like "audio", and "other_video" (B, C, Hv, Wv).
    """
    own = {name: value for name, value in batch.items() if name not in PARTNERS}
    pairings = [own | {name.partition("_")[2]: batch[name]} for name in PARTNERS]
    return {name: torch.cat([pairing[name] for pairing in pairings]) for name in own}


def contrast(
    true: tuple[Tensor, Tensor], wrong: tuple[Tensor, Tensor], displaced: Tensor, temperature: float
) -> Tensor:
    """Return the contrastive loss of each sample, (B,), from its errors for audio and video.

    The errors of all pairings are compared as (4, B).

    Args:
        true: e_a and e_v of pairing 0, (B,) each.
        wrong: e_a and e_v of :func:`wrong_pairings`, (3B,) each.
        displaced: (B,) bool, whether the sample has pairing 2; without, its errors there have no effect.
    """
    audio, video = (
        torch.stack([right, *others.chunk(3)]) for right, others in zip(true, wrong, strict=True)
    )  # (4, B): by pairing
    possible = torch.ones_like(video[:3], dtype=torch.bool)
    possible[2] = displaced
    by_video = (-video[:3] / temperature).masked_fill(~possible, -torch.inf).log_softmax(dim=0)[0]
    by_audio = (-audio[[0, 3]] / temperature).log_softmax(dim=0)[0]
    return -(by_video + by_audio) / 2
