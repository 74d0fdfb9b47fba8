"""Average velocities (MeanFlow, Geng et al., arXiv 2505.13447): a flow sampled in 1 to 4 steps, without a teacher.

A rectified flow predicts the velocity v of the latents at one instant; to follow it takes many steps. A mean flow also
predicts the average velocity u over an interval, from the timestep t back to r, so that one step leads from one end to
the other:

    z_r = z_t − (t − r) / T · u(z_t, r, t).

It learns from the identity u = v − (t − r) du/dt, the derivative being taken along the flow, at fixed r. The right side
is the target, without gradient, with v = n − z of the sample. A share ``mean_flow`` of the training samples has such an
interval, the others have r = t and learn v.

Differences from the paper: du/dt is the difference of two predictions STEP apart, instead of a derivative in forward
mode. That takes one more forward pass, with every attention kernel, ZeRO stage and compiler; and our time embedding,
made for whole timesteps, oscillates too fast for an exact derivative to be of use. Both modalities share the interval.
Guidance is not part of the target; it acts when sampling, as on velocities. Errors are means over a sample's latents,
not sums.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.diffusion.network import Network
from mmldm_scale.diffusion.samplers.contract import even_intervals

STEP = 0.05  # between the two predictions, as a share of all timesteps; ours
ADAPTIVE = 1e-3  # c of the adaptive weight 1 / (error + c) of arXiv 2505.13447


def draw_interval(first: int, second: int) -> tuple[int, float]:
    """Return the timestep t, the larger of two that were drawn, and the interval down to the other.

    The interval is its share of all the way from t to the clean latents, t + 1 timesteps: in (0, 1], 1 if the second is
    0. So it remains valid if t is replaced.
    """
    time = max(first, second)
    return time, (time - min(first, second) + 1) / (time + 1)


def span(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the lengths t − r of the intervals of ``batch`` in timesteps, (B,) float32; 0: at an instant.

    ``batch``: "time" (B,), and "interval" (B,), the share of the way from there to the clean latents.
    """
    return batch["interval"].float() * (batch["time"] + 1)


@torch.no_grad()
def targets(
    network: Network,
    predicted: Mapping[Modality, Tensor],
    velocity: Mapping[Modality, Tensor],
    noisy: Mapping[Modality, Tensor],
    time: Tensor,
    length: int,
    arguments: Mapping[str, Tensor],
) -> dict[Modality, Tensor]:
    """Return the average velocities that the network should have predicted, by modality, (B, C, H, W) float32 each.

    The network runs once more, a little earlier on each sample's line, but not before its interval begins.

    Args:
        predicted: by the network for ``noisy`` at ``time``.
        velocity: n − z of the samples.
        noisy: their mixtures at ``time`` (B,).
        length: T, the number of timesteps.
        arguments: further arguments of the network, "span" (B,) among them.
    """
    span = arguments["span"].float()
    step = (span / length).clamp(max=STEP)  # (B,); 0 at an instant, where v is the target
    back = {name: latent.float() - _wide(step) * velocity[name].float() for name, latent in noisy.items()}
    earlier = {**arguments, "span": span - step * length}
    before = by_modality(*network(*as_pair(back), time - step * length, **earlier))
    share = _wide(span / length / step.clamp(min=torch.finfo(step.dtype).tiny))
    return {name: velocity[name].float() - share * (predicted[name].float() - before[name].float()) for name in noisy}


def _wide(values: Tensor) -> Tensor:
    """Return ``values`` (B,) as (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def adaptive_weight(error: Tensor) -> Tensor:
    """Return the weights (B,) of the samples' ``error`` (B,): without them, a few large errors rule the training."""
    return 1 / (error.detach() + ADAPTIVE)


def average(network: Network, length: int, steps: int) -> Network:
    """Return ``network`` as it predicts in each of ``steps`` even steps over ``length``: averages over that step."""
    spans = np.zeros(length, np.float32)
    for time, end in even_intervals(length, steps):
        spans[time] = time - end
    by_time = torch.from_numpy(spans)

    def predict(
        audio: Tensor | None, video: Tensor | None, time: Tensor, **conditions: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mean velocities of ``audio`` and ``video`` (B, C, H, W) from ``time`` (B,) to the step's end."""
        return network(audio, video, time, span=by_time.to(time.device)[time], **conditions)

    return predict
