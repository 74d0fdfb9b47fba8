"""From noise to latents, for joint and conditional generation, with cross-modal guidance (section 3.3).

Tasks: "svg" makes audio and video together, "a2v" video to given audio, "v2a" audio to given video. Each may have a
context (a class, or embeddings of a text), and svg may continue the clip before. Everything random comes in as an
argument, so a sample is a function of its noise and what it is conditioned on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.config import GenerationTask
from mmldm_scale.diffusion.conditions import marked, null
from mmldm_scale.diffusion.noise_process import Process
from mmldm_scale.models.dit import DiT

GIVEN: dict[GenerationTask, str | None] = {"svg": None, "a2v": "audio", "v2a": "video"}  # each task's condition


@dataclass(frozen=True)
class Latents:
    """Normalised latents of both modalities, or noise of their shapes."""

    audio: Tensor  # (B, C, Ha, Wa)
    video: Tensor  # (B, C, Hv, Wv)


@torch.no_grad()
def sample_latents(
    dit: DiT,
    process: Process,
    task: GenerationTask,
    noise: Latents,
    steps: int,
    guidance: float | Mapping[str, float] = 1.0,
    condition: Tensor | None = None,
    context: Mapping[str, Tensor] | None = None,
    previous: Mapping[str, Tensor] | None = None,
) -> Latents:
    """Generate latents from ``noise`` in ``steps`` steps of ``process`` (they must divide its length).

    All latents are (B, C, H, W), audio and video each of its own C, H and W.

    For a2v and v2a, ``condition`` is the given modality's clean latent. It goes into the network clean as the condition
    and, as in training, corrupted to the present timestep (Eq. 5, with that modality's ``noise`` throughout); it
    comes back unchanged.

    ``context`` is {"label": (B,)}, or {"context": (B, T, W), "context_length": (B,)}, as the DiT takes them.
    ``previous`` are the clean latents of the clips that are continued: "audio", "video" or both; the network learns to
    continue clips in svg alone.

    Guidance acts on what is generated, in the standard form of classifier-free guidance:
    φ · ε(conditions) − (φ − 1) · ε(null) with φ = ``guidance``, one for both modalities or each one's own. ε(null) sees
    none of condition, context and previous clip. Eq. 9 prints (1 − φ) for (φ − 1), which for φ > 1 would add the
    unconditional prediction. Where nothing is given there is no guidance. v and a flow's velocity are guided
    likewise, which is the same: at given latents they are affine in ε, and φ and −(φ − 1) add up to 1.
    """
    given = GIVEN[task]
    latents = {"audio": noise.audio.float(), "video": noise.video.float()}
    first_noise = dict(latents)
    found = {f"{given}_condition": condition} if given else {}
    found |= {f"previous_{name}": marked(latent) for name, latent in (previous or {}).items()} | dict(context or {})
    strength = dict(guidance) if isinstance(guidance, Mapping) else dict.fromkeys(latents, guidance)
    for time in process.timesteps(steps).tolist():
        if given:
            when = torch.tensor([time], device=condition.device)
            latents[given] = process.corrupt(condition.float(), first_noise[given], when)
        predicted = _predict(dit, latents, time, found, strength)
        for name in latents:
            if name != given:
                latents[name] = process.step(predicted[name], time, latents[name])
    if given:
        latents[given] = condition
    return Latents(**latents)


def _predict(
    dit: DiT, latents: dict[str, Tensor], time: int, found: dict[str, Tensor], guidance: dict[str, float]
) -> dict[str, Tensor]:
    """Return what is predicted of each modality under the conditions ``found``, guided; one forward pass, float32."""
    audio, video = latents["audio"], latents["video"]
    times = torch.full((len(audio),), time, device=audio.device)
    if not found:
        predicted = dit(audio, video, times)
        return {"audio": predicted[0].float(), "video": predicted[1].float()}
    nothing = null(found)
    doubled = {name: torch.cat([value, nothing[name]]) for name, value in found.items()}
    predicted = dit(audio.repeat(2, 1, 1, 1), video.repeat(2, 1, 1, 1), times.repeat(2), **doubled)
    guided = {}
    for name, pair in zip(("audio", "video"), predicted, strict=True):
        conditional, unconditional = pair.float().chunk(2)
        guided[name] = guidance[name] * conditional - (guidance[name] - 1) * unconditional
    return guided
