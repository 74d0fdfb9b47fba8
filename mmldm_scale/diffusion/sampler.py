"""From noise to latents, for joint and conditional generation, with cross-modal guidance (section 3.3).

Tasks: "svg" makes audio and video together, "a2v" video to given audio, "v2a" audio to given video. Everything random
comes in as an argument, so a sample is a function of its noise and condition.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.config import GenerationTask
from mmldm_scale.diffusion.process import Process
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
    guidance: float = 1.0,
    condition: Tensor | None = None,
) -> Latents:
    """Generate latents from ``noise`` in ``steps`` steps of ``process`` (they must divide its length).

    All latents are (B, C, H, W), audio and video each of its own C, H and W.

    For a2v and v2a, ``condition`` is the given modality's clean latent. It goes into the network clean as the condition
    and, as in training, corrupted to the present timestep (Eq. 5, with that modality's ``noise`` throughout); it
    comes back unchanged.

    Guidance acts on the generated modality, in the standard form of classifier-free guidance:
    φ · ε(condition) − (φ − 1) · ε(null) with φ = ``guidance``. Eq. 9 prints (1 − φ) for (φ − 1), which for φ > 1 would
    add the unconditional prediction. svg has no condition and so no guidance. v and a flow's velocity are guided
    likewise, which is the same: at given latents they are affine in ε, and φ and −(φ − 1) add up to 1.
    """
    given = GIVEN[task]
    latents = {"audio": noise.audio.float(), "video": noise.video.float()}
    first_noise = dict(latents)
    for time in process.timesteps(steps).tolist():
        if given:
            when = torch.tensor([time], device=condition.device)
            latents[given] = process.corrupt(condition.float(), first_noise[given], when)
        predicted = _predict(dit, latents, time, given, condition, guidance)
        for name in latents:
            if name != given:
                latents[name] = process.step(predicted[name], time, latents[name])
    if given:
        latents[given] = condition
    return Latents(**latents)


def _predict(
    dit: DiT, latents: dict[str, Tensor], time: int, given: str | None, condition: Tensor | None, guidance: float
) -> dict[str, Tensor]:
    """Return what is predicted of each modality, guided where something is given; one forward pass, float32."""
    audio, video = latents["audio"], latents["video"]
    times = torch.full((len(audio),), time, device=audio.device)
    if given is None:
        predicted = dit(audio, video, times)
        return {"audio": predicted[0].float(), "video": predicted[1].float()}
    clean = {f"{given}_condition": torch.cat([condition, torch.zeros_like(condition)])}  # with it, then the null one
    predicted = dit(audio.repeat(2, 1, 1, 1), video.repeat(2, 1, 1, 1), times.repeat(2), **clean)
    pairs = [p.float().chunk(2) for p in predicted]
    guided = [guidance * conditional - (guidance - 1) * null for conditional, null in pairs]
    return {"audio": guided[0], "video": guided[1]}
