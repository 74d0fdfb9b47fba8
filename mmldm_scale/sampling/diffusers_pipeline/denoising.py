"""The DiT's steps through a scheduler of diffusers, with guidance and given modalities (section 3.3).

A scheduler works on the latents of the generated modalities in one tensor. It counts time as the network does, but for
flows, whose schedulers count T · s, one more (:mod:`mmldm_scale.diffusion.schedule`). A network of average velocities
(:mod:`mmldm_scale.diffusion.mean_flow`) gets the length of each step of FlowMatchEulerDiscreteScheduler.

Shapes: B samples, latents (B, C, H, W) by modality, packed (B, N).
"""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import DecodingConfig, DiffusionConfig, Sampling
from mmldm_scale.diffusion.guidance import Guidance, guided_prediction
from mmldm_scale.diffusion.network import Network
from mmldm_scale.diffusion.noise_process import MeanFlow, RectifiedFlow, noise_process
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.diffusers_pipeline.parts import MMLDMDiT

PREDICTION_TYPES = {"epsilon": ("epsilon",), "v": ("v_prediction",), "flow": ("flow_prediction",)}  # of schedulers


class Request:
    """The denoising of B samples: noise, what is given, and the contexts.

    Args:
        dit: predicts.
        scheduler: of diffusers; its timesteps are set.
        noise: standard normal, of every modality of the model.
        fixed: clean latents of the given modality, {} if none is given. The network sees them clean as the condition
            and corrupted to the present timestep by their ``noise``, as in training (Eq. 5).
        context: the DiT's context arguments.
    """

    def __init__(
        self,
        dit: MMLDMDiT,
        scheduler: Any,
        noise: Mapping[Modality, Tensor],
        fixed: Mapping[Modality, Tensor],
        context: Mapping[str, Tensor],
    ) -> None:
        self.dit, self.scheduler, self.noise, self.fixed = dit, scheduler, noise, fixed
        self.process = noise_process(dit.description.diffusion)
        self.conditions = {f"{name}_condition": latent for name, latent in fixed.items()} | dict(context)
        self.shapes = {name: latent.shape for name, latent in noise.items() if name not in fixed}

    def start(self) -> Tensor:
        """Return the packed latents before the first step."""
        sigma = getattr(self.scheduler, "init_noise_sigma", 1.0)
        return self.pack(self.noise) * sigma

    def pack(self, latents: Mapping[Modality, Tensor]) -> Tensor:
        """Return the latents of the generated modalities, (B, N)."""
        return torch.cat([latents[name].flatten(1) for name in self.shapes], dim=1)

    def unpack(self, packed: Tensor) -> dict[Modality, Tensor]:
        """Return the latents in ``packed`` by modality."""
        parts = packed.split([math.prod(shape[1:]) for shape in self.shapes.values()], dim=1)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def step(self, packed: Tensor, time: Tensor, guidance: Guidance, options: Mapping[str, Any]) -> Tensor:
        """Return the packed latents after the scheduler's step at ``time``; ``options`` are its own."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        latents = self.unpack(scale(packed, time) if scale else packed)
        own_time = time - 1 if isinstance(self.process, RectifiedFlow) else time
        for name, clean in self.fixed.items():
            at = own_time if isinstance(self.process, RectifiedFlow) else own_time.round().long()
            latents[name] = self.process.corrupt(clean, self.noise[name], at.reshape(1).to(clean.device))
        inputs, number = {name: latents[name] for name in self.noise}, own_time.item()
        share = min(round((number + 1) / self.process.length, 6), 1.0)  # a float32 0.8 is more than 0.8
        weights = {name: guidance.weights(share, name, self.conditions) for name in self.shapes}
        predicted = guided_prediction(self._network(number), inputs, number, self.conditions, weights)
        stepped: Tensor = self.scheduler.step(self.pack(predicted), time, packed, **options, return_dict=False)[0]
        return stepped

    def _network(self, now: float) -> Network:
        """Return the DiT at the timestep ``now``; a mean flow's predicts the average over the scheduler's step.

        Schedulers that do not follow one prediction all the way through a step take velocities at an instant.
        """
        scheduler = self.scheduler
        straight = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not scheduler.config.stochastic_sampling
        if not straight or not isinstance(self.process, MeanFlow):
            return self.dit
        index = scheduler.step_index or 0  # None before the first step
        end = float(scheduler.sigmas[index + 1]) * self.process.length - 1  # as the network counts time

        def predict(
            audio: Tensor | None, video: Tensor | None, time: Tensor, **conditions: Tensor
        ) -> tuple[Tensor | None, Tensor | None]:
            """Return the mean velocities of ``audio`` and ``video`` (B, C, H, W) from ``time`` (B,) to the end."""
            averages: tuple[Tensor | None, Tensor | None]
            averages = self.dit(audio, video, time, span=torch.full_like(time, now - end), **conditions)
            return averages

        return predict


def guidance(
    scale: float | Mapping[str, float], names: Iterable[str], context: float | None, interval: Sequence[float]
) -> Guidance:
    """Return the guidance of the modalities ``names`` that the arguments of a call say.

    Raises:
        UserError: ``context`` (class_guidance) or ``interval`` (guidance_interval) is out of range.
        ValueError: see :func:`scale_of`.
    """
    Sampling(class_guidance=context, guidance_interval=[*interval])  # checks them
    low, high = interval
    return Guidance({name: scale_of(scale, name, "guidance_scale") for name in names}, context, (low, high))


def scale_of(scale: float | Mapping[str, float], name: str, argument: str) -> float:
    """Return the scale of the modality ``name``; raise ValueError if the mapping ``argument`` has none."""
    if not isinstance(scale, Mapping):
        return float(scale)
    if name not in scale:
        raise ValueError(f"{argument}: {dict(scale)}: has none of {name}; must be a number, or one by modality")
    return float(scale[name])


def check_scheduler(scheduler: Any, diffusion: DiffusionConfig) -> None:
    """Raise ValueError unless ``scheduler`` takes what the model predicts."""
    kind, name, wanted = scheduler.config.get("prediction_type"), type(scheduler).__name__, diffusion.prediction
    remedy = "make it with from_config(pipe.scheduler.config"
    if name.startswith("FlowMatch"):
        kind = "flow_prediction"
    elif wanted == "flow":
        remedy += ', prediction_type="flow_prediction", use_flow_sigmas=True'
        if kind == "flow_prediction" and not scheduler.config.get("use_flow_sigmas"):
            raise ValueError(f"scheduler: {name} has not the timesteps of a flow: {remedy})")
    if kind not in PREDICTION_TYPES[wanted]:
        raise ValueError(f"scheduler: {name} takes {kind}; the model predicts {PREDICTION_TYPES[wanted][0]}: {remedy})")


def set_timesteps(scheduler: Any, steps: int, device: torch.device) -> Tensor:
    """Set ``steps`` steps of ``scheduler`` and return its timesteps.

    A flow's are even from pure noise to 1 / steps, as in Flux's pipeline and in training: its own end at 1 / T.
    """
    if steps < 1:
        raise ValueError(f"num_inference_steps: {steps}: must be at least 1")
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def step_options(scheduler: Any, generator: Any, eta: float) -> dict[str, Any]:
    """Return those of the options that the ``step`` of ``scheduler`` takes."""
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("generator", generator), ("eta", eta)) if name in taken}


def decoder_calls(autoencoder: Autoencoder, noise: Mapping[Modality, Tensor], decoding: DecodingConfig) -> int:
    """Return how often the signal decoder is called to decode ``noise``, for a progress bar."""
    scales: dict[Modality, float] = {"audio": decoding.audio_guidance, "video": decoding.video_guidance}
    pictures = {name: len(part) * (part.shape[1] if name == "video" else 1) for name, part in noise.items()}
    groups = [[*noise]] if autoencoder.config.shared_decoder else [[name] for name in noise]
    calls = 0
    for group in groups:
        count, guided = sum(pictures[name] for name in group), any(scales[name] > 1 for name in group)
        together = decoding.pictures or 2 * count
        calls += math.ceil(count / max(1, together // (1 + guided)))
    return calls * decoding.steps
