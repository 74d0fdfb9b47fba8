"""The DiT's steps through a scheduler of diffusers, with guidance and given modalities (section 3.3).

A scheduler works on the latents of the generated modalities in one tensor. It counts time as the network does, but for
flows, whose schedulers count T · s, one more (:mod:`mmldm_scale.diffusion.schedule`).

Shapes: B samples, latents (B, C, H, W) by modality, packed (B, N).
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.config import DecodingConfig, DiffusionConfig
from mmldm_scale.diffusion.conditions import null
from mmldm_scale.diffusion.noise_process import RectifiedFlow, noise_process
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.description import DiTDescription
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

    def step(
        self, packed: Tensor, time: Tensor, guidance: float | Mapping[str, float], options: Mapping[str, Any]
    ) -> Tensor:
        """Return the packed latents after the scheduler's step at ``time``; ``options`` are its own."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        latents = self.unpack(scale(packed, time) if scale else packed)
        own_time = time - 1 if isinstance(self.process, RectifiedFlow) else time
        for name, clean in self.fixed.items():
            at = own_time if isinstance(self.process, RectifiedFlow) else own_time.round().long()
            latents[name] = self.process.corrupt(clean, self.noise[name], at.reshape(1).to(clean.device))
        predicted = self.pack(self._predict({name: latents[name] for name in self.noise}, own_time, guidance))
        stepped: Tensor = self.scheduler.step(predicted, time, packed, **options, return_dict=False)[0]
        return stepped

    def _predict(
        self, latents: Mapping[Modality, Tensor], time: Tensor, guidance: float | Mapping[str, float]
    ) -> dict[Modality, Tensor]:
        """Return the guided prediction for each modality, float32: φ · ε(conditions) − (φ − 1) · ε(null)."""
        scales = {name: scale_of(guidance, name) for name in latents}
        conditions, inputs = self.conditions, dict(latents)
        guided = bool(conditions) and any(scales[name] != 1 for name in self.shapes)
        if guided:
            without = null(conditions)
            conditions = {name: torch.cat([value, without[name]]) for name, value in conditions.items()}
            inputs = {name: latent.repeat(2, 1, 1, 1) for name, latent in latents.items()}
        first = next(iter(inputs.values()))
        times = time.to(first.device).expand(len(first))
        predicted = by_modality(*self.dit(*as_pair(inputs), times, **conditions))
        if not guided:
            return {name: part.float() for name, part in predicted.items()}
        halves = {name: part.float().chunk(2) for name, part in predicted.items()}
        return {name: scales[name] * seen - (scales[name] - 1) * unseen for name, (seen, unseen) in halves.items()}


def scale_of(guidance: float | Mapping[str, float], name: str) -> float:
    """Return the guidance scale of the modality ``name``; raise ValueError if a mapping has none."""
    if not isinstance(guidance, Mapping):
        return float(guidance)
    if name not in guidance:
        raise ValueError(f"guidance scale: {dict(guidance)}: has none of {name}; must be a number, or one by modality")
    return float(guidance[name])


def check_scheduler(scheduler: Any, diffusion: DiffusionConfig) -> None:
    """Raise ValueError unless ``scheduler`` takes what the model predicts."""
    kind = scheduler.config.get("prediction_type")
    if type(scheduler).__name__.startswith("FlowMatch"):
        kind = "flow_prediction"
    if kind not in PREDICTION_TYPES[diffusion.prediction]:
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} takes {kind}; the model predicts "
            f"{PREDICTION_TYPES[diffusion.prediction][0]}: make it with from_config(pipe.scheduler.config)"
        )


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


def contexts(description: DiTDescription, labels: Any, embeddings: Any) -> dict[str, list[Any]]:
    """Return the contexts by argument, one for each prompt; without those that are None.

    Raises:
        UserError: the model was not trained on classes or texts, or has no such class.
        ValueError: both are given.
    """
    if labels is not None and embeddings is not None:
        raise ValueError("class_labels, prompt_embeds: only one of them is possible")
    if labels is not None:
        named = [labels] if isinstance(labels, str | int) else [*labels]
        return {"class_labels": [_class_number(description, label) for label in named]}
    if embeddings is None:
        return {}
    if description.context != "text":
        raise UserError(f"prompt_embeds: the model was not trained on texts, but {description.context}")
    tokens, width = description.model.context_tokens, description.model.context_width
    rows = [*embeddings] if not isinstance(embeddings, Tensor) or embeddings.ndim == 3 else [embeddings]
    for row in rows:
        if row.ndim != 2 or not 1 <= len(row) <= tokens or row.shape[1] != width:
            shape = tuple(row.shape)
            raise UserError(f"prompt_embeds: {shape}: must be of shape (n, {width}) with n from 1 to {tokens}")
    return {"prompt_embeds": rows}


def context_arguments(
    description: DiTDescription, contexts: Mapping[str, Sequence[Any]], device: torch.device
) -> dict[str, Tensor]:
    """Return the DiT's context arguments for ``contexts``, one for each sample."""
    if "class_labels" in contexts:
        return {"label": torch.tensor(contexts["class_labels"], device=device)}
    if "prompt_embeds" not in contexts:
        return {}
    rows = contexts["prompt_embeds"]
    context = torch.zeros(len(rows), description.model.context_tokens, description.model.context_width, device=device)
    for padded, row in zip(context, rows, strict=True):
        padded[: len(row)] = row.to(device)
    return {"context": context, "context_length": torch.tensor([*map(len, rows)], device=device)}


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


def _class_number(description: DiTDescription, label: str | int) -> int:
    if isinstance(label, str):
        return description.class_number(label)
    if not 0 <= label < len(description.classes):
        raise UserError(f"class_labels: {label}: the model has {len(description.classes)} classes, from 0")
    return label
