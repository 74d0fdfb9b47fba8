"""The contrastive loss between the clips that all processes hold together (section 3.1, Eq. 1).

Within a group of clips each one's sound and picture belong together, and all other pairs do not. A micro-step covers
consecutive positions of the run's order, rank by rank, and groups are consecutive positions too: which clips are
compared, and so the loss, does not depend on the number of processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as collectives

from mmldm_scale.common.errors import UserError
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining


def contrastive_losses(audio: Tensor, video: Tensor, temperature: Tensor, group: int) -> Tensor:
    """Return Eq. 1's loss of each of this process's clips: (B,), the mean of both directions' cross-entropies.

    Their mean over all processes is Eq. 1 divided by the number of clips, as in CLIP (Eq. 1 is printed as a sum). Its
    gradient, averaged over processes as data-parallel training does, is that of one process which holds all clips:
    gathering hands each process its part of the gradients of the others' losses.

    Args:
        audio: (B, W), the audio features f_co(s_a), of norm 1.
        video: (B, W), likewise of the video.
        temperature: τ, a scalar that multiplies the similarities.
        group: clips compared with one another; divides B times the number of processes.
    """
    features = _gathered(torch.stack([audio, video], dim=1))  # (N, 2, W), N = B · processes
    audio, video = features.unflatten(0, (-1, group)).unbind(2)  # each (N/group, group, W)
    similarity = temperature * audio @ video.mT  # (N/group, group, group): sounds by pictures
    pairs = [scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2) for scores in (similarity, similarity.mT)]
    losses = -0.5 * (pairs[0] + pairs[1]).flatten()  # (N,)
    return losses.unflatten(0, (_processes(), -1))[_rank()]


def contrasts(config: AutoencoderTraining) -> bool:
    """Return whether the loss has a contrastive term."""
    return bool(config.contrastive_weight and config.model.semantics and config.model.contrastive_width)


def contrastive_group(config: AutoencoderTraining) -> int:
    """Return how many clips are compared with one another; 0 if the loss has no contrastive term.

    Raises:
        UserError: what the processes take at once does not divide into such groups.
    """
    if not contrasts(config):
        return 0
    training = config.training
    group, together = config.contrastive_batch or training.global_batch, training.micro_batch * _processes()
    if group > 1 and together % group == 0:
        return group
    fits = [f"contrastive_batch={together}"] if together > 1 else ["contrastive_weight=0"]
    if group > 1 and group % _processes() == 0 and training.global_batch % group == 0:
        fits.insert(0, f"training.micro_batch={group // _processes()}")
    raise UserError(
        f"contrastive_batch: groups of {group} cannot be made of the {together} clips that training.micro_batch="
        f"{training.micro_batch} on {_processes()} process{'es' * (_processes() > 1)} takes at once and compared; "
        f"{' or '.join(fits)} fits"
    )


def _gathered(features: Tensor) -> Tensor:
    """Return ``features`` (B, …) of all processes by rank: (N, …); gradients flow back to where they came from."""
    return torch.cat(collectives.all_gather(features)) if _processes() > 1 else features


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
