"""The contrastive loss over the clips of all processes (section 3.1, Eq. 1).

Clips are compared within groups: a clip's own sound and pictures are the positive pair, all other pairs of the group
are negative. A micro-step covers consecutive positions of the run's order, rank by rank, and a group is a range of
consecutive positions. The comparisons, and with them the loss, are thus the same for any number of processes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn import functional as collectives

from mmldm_scale.common.errors import UserError
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining


def contrastive_losses(audio: Tensor, video: Tensor, temperature: Tensor, group: int) -> Tensor:
    """Return the loss of Eq. 1 for each of this process's clips: (B,), the mean of both directions' cross-entropies.

    Their mean over all processes is Eq. 1 divided by the number of clips, as in CLIP (Eq. 1 is printed as a sum). Its
    gradient, averaged over processes as in data-parallel training, equals that of a single process with all clips,
    because the backward pass of gathering returns the gradients of the other processes' losses.

    Args:
        audio: (B, W), the audio features f_co(s_a), of length 1.
        video: (B, W), the video features f_co(s_v), of length 1.
        temperature: τ, (), multiplies the similarities.
        group: number of clips compared with one another; divides B times the number of processes.
    """
    features = _gathered(torch.stack([audio, video], dim=1))  # (N, 2, W), N = B · processes
    audio, video = features.unflatten(0, (-1, group)).unbind(2)  # each (N/group, group, W)
    similarity = temperature * audio @ video.mT  # (N/group, group, group): audio by video
    pairs = [scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2) for scores in (similarity, similarity.mT)]
    losses = -0.5 * (pairs[0] + pairs[1]).flatten()  # (N/group, group) -> (N,)
    return losses.unflatten(0, (_processes(), -1))[_rank()]  # (N,) -> (processes, B) -> (B,)


def contrasts(config: AutoencoderTraining) -> bool:
    """Return whether the loss has a contrastive term."""
    return bool(config.contrastive_weight and config.model.semantics and config.model.contrastive_width)


def contrastive_group(config: AutoencoderTraining) -> int:
    """Return the number of clips compared with one another; 0 if the loss has no contrastive term.

    Raises:
        UserError: the clips of a micro-step on all processes do not divide into such groups.
    """
    if not contrasts(config):
        return 0
    training = config.training
    group, processes = config.contrastive_batch or training.global_batch, _processes()
    clips = training.micro_batch * processes  # of a micro-step
    if group > 1 and clips % group == 0:
        return group
    remedies = [f"contrastive_batch={clips}"] if clips > 1 else ["contrastive_weight=0"]
    if group > 1 and group % processes == 0 and training.global_batch % group == 0:
        remedies.insert(0, f"training.micro_batch={group // processes}")
    raise UserError(
        f"contrastive_batch: {group} must be at least 2 and divide the {clips} clips of a micro-step "
        f"(training.micro_batch={training.micro_batch} on {processes} process{'es' * (processes > 1)}); "
        f"use {' or '.join(remedies)}"
    )


def _gathered(features: Tensor) -> Tensor:
    """Return the ``features`` (B, …) of all processes by rank, (N, …); gradients return to their process."""
    return torch.cat(collectives.all_gather(features)) if _processes() > 1 else features


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
