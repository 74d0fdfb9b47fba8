"""From noise to latents for joint and conditional generation, with cross-modal guidance (section 3.3).

:mod:`.tasks` has the tasks. Each may have a context (a class, or embeddings of a text), and continue the previous clip.
Everything random is an argument, so that a sample is a function of its noise and its conditions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmldm_scale.common.modalities import Modality, by_modality
from mmldm_scale.diffusion import mean_flow
from mmldm_scale.diffusion.guidance import Guidance, guided_prediction
from mmldm_scale.diffusion.network import Network
from mmldm_scale.diffusion.noise_process import Process
from mmldm_scale.diffusion.samplers import get_sampler
from mmldm_scale.diffusion.tasks import GIVEN, GenerationTask


@dataclass(frozen=True)
class Latents:
    """Normalised latents of both modalities, or noise of their shapes; None for one that the model does not have."""

    audio: Tensor | None = None  # (B, C, Ha, Wa)
    video: Tensor | None = None  # (B, C, Hv, Wv)

    @property
    def present(self) -> dict[Modality, Tensor]:
        """The latents by modality, without the missing one."""
        return by_modality(self.audio, self.video)

    def rows(self, rows: slice) -> "Latents":
        """Return the latents of some of the B samples."""
        return Latents(**{name: latent[rows] for name, latent in self.present.items()})


@torch.no_grad()
def sample_latents(
    network: Network,
    process: Process,
    task: GenerationTask,
    noise: Latents,
    steps: int,
    guidance: float | Mapping[str, float] = 1.0,
    condition: Tensor | None = None,
    context: Mapping[str, Tensor] | None = None,
    previous: Mapping[Modality, Tensor] | None = None,
    sampler: str = "auto",
    class_guidance: float | None = None,
    guidance_interval: Sequence[float] = (0.0, 1.0),
) -> Latents:
    """Generate latents from ``noise``.

    Guidance acts on the generated modalities, in the standard form of classifier-free guidance:
    φ · ε(conditions) − (φ − 1) · ε(null) with φ = ``guidance``. ε(null) sees neither condition nor context nor previous
    clip. Without any condition there is no guidance. :mod:`~mmldm_scale.diffusion.guidance` has the general form.

    Args:
        network: the DiT; its latents are (B, C, H, W), audio and video each with its own C, H and W.
        process: the noise process that the network was trained with.
        steps: how many steps the sampler takes, from 1 to ``process.length``.
        guidance: φ of both modalities, or of each by name, at least 0; 1 has no effect.
        condition: for a2v and v2a, the clean latent of the given modality. The network sees it clean as the condition
            and, as in training, corrupted to the present timestep (Eq. 5, with that modality's ``noise`` throughout);
            it is returned unchanged.
        context: {"label": (B,)}, or {"context": (B, T, W), "context_length": (B,)}, as the DiT takes them.
        previous: the clean latents of the clips that are continued: "audio", "video" or both.
        sampler: a name of :data:`~mmldm_scale.diffusion.samplers.SAMPLERS`, or "auto".
        class_guidance: φ of the context, of both modalities; None: as ``guidance``.
        guidance_interval: low and high in 0..1: at timestep t of T, guidance applies if low < (t + 1) / T ≤ high.

    Raises:
        UserError: the sampler is unknown, or process or steps do not fit it.
        ValueError: the task needs a condition and there is none, or a modality that the noise does not have.
    """
    start = {name: latent.float() for name, latent in noise.present.items()}
    fixed = _given(task, start, condition)
    conditions = {f"{name}_condition": latent for name, latent in fixed.items()}
    conditions |= {f"previous_{name}": latent for name, latent in (previous or {}).items()} | dict(context or {})
    generated = {name: latent for name, latent in start.items() if name not in fixed}
    low, high = guidance_interval
    scales = guidance if isinstance(guidance, Mapping) else {str(name): guidance for name in generated}
    guided = Guidance(scales, class_guidance, (low, high))

    sample = get_sampler(sampler, process, steps)
    if sample.name == "mean_flow":
        network = mean_flow.average(network, process.length, steps)

    def predict(packed: Tensor, time: int) -> Tensor:
        """Return the guided prediction for the generated modalities, packed (B, N) like their latents."""
        latents = _unpack(packed, generated)
        for name, clean in fixed.items():
            timestep = torch.tensor([time], device=clean.device)
            latents[name] = process.corrupt(clean.float(), start[name], timestep)
        share = (time + 1) / process.length
        weights = {name: guided.weights(share, name, conditions) for name in generated}
        return _pack(guided_prediction(network, latents, time, conditions, weights))

    return Latents(**_unpack(sample(predict, _pack(generated), process, steps), generated), **fixed)


def _given(task: GenerationTask, noise: Mapping[Modality, Tensor], condition: Tensor | None) -> dict[Modality, Tensor]:
    """Return the clean latent (B, C, H, W) of the modality that ``task`` is given, by its name; {} for svg."""
    given = GIVEN[task]
    if given is None:
        return {}
    if condition is None:
        raise ValueError(f"{task} needs a condition: the clean latent of its {given}")
    if len(noise) == 1:
        raise ValueError(f"{task} needs noise of both modalities")
    return {given: condition}


def _pack(latents: Mapping[Modality, Tensor]) -> Tensor:
    """Return the ``latents`` of all modalities, (B, C, H, W) each, as one tensor (B, N): what a sampler works on."""
    return torch.cat([latent.flatten(1) for latent in latents.values()], dim=1)


def _unpack(packed: Tensor, like: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
    """Return the latents in ``packed`` (B, N), by the names and shapes of ``like``."""
    parts = packed.split([latent[0].numel() for latent in like.values()], dim=1)
    return {
        name: part.reshape(latent.shape).contiguous() for (name, latent), part in zip(like.items(), parts, strict=True)
    }
