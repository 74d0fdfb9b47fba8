"""A signal decoder that learns to draw a picture in few steps what its teacher draws in many.

A clip's picture is made noisy to one of the few timesteps t at which the distilled decoder will be called. From there
the decoder learns to predict the clean picture at once: its loss is the squared error of the clean latent z that its
noise ε̂ implies,

    ẑ = (z^t − √(1 − ᾱ) ε̂) / √ᾱ.

The clean picture is the clip's own: what the perceptual latent says decides nearly all of a picture, so that little is
left to be drawn, and the mean of what is possible is close to each of it. With ``target: teacher`` it is what the
frozen teacher draws from the same noisy picture by DDIM, guided if so configured. That is the teacher's consistency
function (Song et al., arXiv 2303.01469), learned for these timesteps alone, by regression on the teacher's own result
instead of on a neighbour's. DDIM at these timesteps samples from either.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.diffusion.noise_process import Diffusion
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models.autoencoder.decoder import Condition, SignalDecoder
from mmldm_scale.models.autoencoder.distillation import timesteps
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.pictures import join, split
from mmldm_scale.models.autoencoder.semantic import Semantics
from mmldm_scale.trainables.decoder_distil.config import DecoderDistilTraining
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import Batch, StepInfo, StepOutput, weighted_sum

# Latents of sound and frames, target frames, semantics and labels: what Autoencoder.conditions takes.
_Given = tuple[Tensor | None, Tensor | None, Tensor | None, Semantics | None, Tensor | None]


class DecoderDistillation(nn.Module):
    """The signal decoder that learns, with its loss: maps a batch of :class:`~.dataset.ClipDataset` to a StepOutput.

    Only the decoder is a sub-module of the autoencoder here, since it alone is trained. The other parts and the teacher
    are plain attributes, which no engine casts, divides or saves.

    Attributes:
        autoencoder: whose decoder learns.
        teacher: the decoder as it was.
        times: the timesteps that the decoder will be called at, (n,) int64, ascending.
    """

    teacher: SignalDecoder

    def __init__(self, config: DecoderDistilTraining, model: Autoencoder) -> None:
        """Take the trained autoencoder ``model``, in evaluation mode and float32; its decoder is trained on."""
        super().__init__()
        teacher = copy.deepcopy(model.decoder).eval().requires_grad_(False)
        model.requires_grad_(False)
        model.decoder.requires_grad_(True)
        self.autoencoder = model
        self.frozen = {name: part for name, part in model.named_children() if name != "decoder"}
        model.set_aside(*self.frozen)
        self.__dict__["teacher"] = teacher
        self.process: Diffusion = teacher.process
        self.audio_image = AudioImage(model.media)
        self.times = torch.tensor(timesteps(self.process.length, config.steps), device="cpu")
        self.learns_clip = config.target == "clip"
        self.teacher_steps = config.teacher.steps
        self.guidance = {name: getattr(config.teacher, f"{name}_guidance") for name in model.modalities}
        self.error_weights = {f"loss/{name}": getattr(config.loss_weights, name) for name in model.modalities}
        self.logged = False

    def begin_step(self, step: StepInfo) -> None:
        """Take note of the optimizer step that begins."""
        self.logged = step.logged

    def forward(self, batch: Batch) -> StepOutput:
        """Return the losses of B clips, (B,) float32 each.

        "loss/audio" and "loss/video" are the mean squared errors of the clean KL-VAE latents predicted for the audio
        image and for the target frames; the loss is their weighted sum. On logged steps and in validation they are also
        there by quarter of the timesteps that are visited.

        Args:
            batch: "frames" (B, F, S, S, 3) uint8 if the model has video; "waveform" (B, N) if it has audio; "label"
                (B,), the class or -1; "targets" (B, K), indices of the target frames, K = 0 without video. For each of
                the P decoded pictures, the targets and, last, the audio image: "time" (B, P), places in ``times``, and
                "noise" (B, P, c, s, s). Noise of the posteriors: "audio_noise" (B, C, H_a, W_a) and "video_noise"
                (B, C, H_v, W_v).
        """
        model = self.autoencoder
        with torch.no_grad():
            clean, perceptual = self._encode(batch)
            semantics = model.semantics(*as_pair(perceptual))
        labels = batch["label"] if model.classes else None
        given: _Given = (*as_pair(perceptual), batch["targets"], semantics, labels)
        conditions = dict(zip(model.modalities, model.conditions(*given), strict=True))
        times, places = self.times.to(clean.device)[batch["time"]], split(batch["time"], model.modalities)
        noisy = self.process.corrupt(clean.flatten(0, 1), batch["noise"].flatten(0, 1), times.flatten())
        noisy = noisy.unflatten(0, times.shape)  # (B·P, c, s, s) -> (B, P, c, s, s)
        wanted = clean if self.learns_clip else self._taught(noisy, times, given)
        errors = self._errors(noisy, times, wanted, conditions)
        metrics = {f"loss/{name}": error.mean(dim=1) for name, error in errors.items()}
        loss = weighted_sum(metrics, self.error_weights)
        if self.logged or not self.training:
            for name, error in errors.items():
                metrics |= metric_means.by_time({f"loss/{name}": error}, places[name], len(self.times))
        return StepOutput(loss=loss, metrics=metrics)

    def _encode(self, batch: Batch) -> tuple[Tensor, dict[Modality, Tensor]]:
        """Return the KL-VAE latents (B, P, c, s, s) of the pictures to decode, and a draw of the perceptual latents."""
        model, targets = self.autoencoder, batch["targets"]
        frames = to_signal(batch["frames"]) if "frames" in batch else None
        sound = self.audio_image.encode(batch["waveform"])[:, None] if "waveform" in batch else None
        latents = split(model.clip_latents(join(by_modality(sound, frames))), model.modalities)
        posteriors = model.posteriors_of(join(latents)).present
        if "video" in latents:
            clips = torch.arange(len(targets), device=targets.device)[:, None]
            latents["video"] = latents["video"][clips, targets]  # (B, K, c, s, s)
        return join(latents), {name: part.sample(batch[f"{name}_noise"]) for name, part in posteriors.items()}

    @torch.no_grad()
    def _taught(self, noisy: Tensor, times: Tensor, given: _Given) -> Tensor:
        """Return the clean latents that the teacher draws from ``noisy`` (B, P, c, s, s) at ``times`` (B, P)."""
        model, drawn = self.autoencoder, {}
        conditions = model.conditions(*given, decoder=self.teacher)
        parts, of_parts = split(noisy, model.modalities), split(times, model.modalities)
        for name, condition in zip(model.modalities, conditions, strict=True):
            latents, begin = parts[name].flatten(0, 1), of_parts[name].flatten()
            null = self.teacher.null(name, condition) if self.guidance[name] > 1 else None
            clean = draw(self.teacher, latents, begin, self.teacher_steps, condition, null, self.guidance[name])
            drawn[name] = clean.view_as(parts[name])
        return join(drawn)

    def _errors(
        self, noisy: Tensor, times: Tensor, wanted: Tensor, conditions: Mapping[Modality, Condition]
    ) -> dict[Modality, Tensor]:
        """Return the mean squared errors (B, K) of each modality's pictures; arguments are (B, P, …)."""
        errors: dict[Modality, Tensor] = {}
        modalities = self.autoencoder.modalities
        parts, of_parts, targets = (split(values, modalities) for values in (noisy, times, wanted))
        for name, condition in conditions.items():
            latents, time = parts[name].flatten(0, 1), of_parts[name].flatten()
            predicted = self.autoencoder.decoder(latents, time, condition)
            clean = clean_latents(self.process, latents, predicted, time).view_as(targets[name])
            errors[name] = (clean - targets[name]).square().mean(dim=(2, 3, 4))
        return errors


def clean_latents(process: Diffusion, noisy: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return the clean latents in ``noisy`` (N, c, s, s) at ``time`` (N,), if its noise is ``noise``."""
    signal = process.alpha_bar(time).view(-1, 1, 1, 1)
    return (noisy - (1 - signal).sqrt() * noise) / signal.sqrt()


def draw(
    decoder: SignalDecoder,
    noisy: Tensor,
    time: Tensor,
    steps: int,
    condition: Condition,
    null: Condition | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Return the clean latents (N, c, s, s) that ``decoder`` draws from ``noisy`` (N, c, s, s) by DDIM.

    Args:
        time: (N,), where each picture begins; its ``steps`` are spread evenly from there.
        condition: of these N pictures.
        null: the same, of which only class and frame index are known; None: there is no guidance.
        guidance: scale φ: φ · ε(condition) − (φ − 1) · ε(null).
    """
    process, latents = decoder.process, noisy
    for number in range(steps, 0, -1):
        at, end = ((time + 1) * left // steps - 1 for left in (number, number - 1))
        noise = decoder(latents, at, condition)
        if null is not None:
            noise = guidance * noise - (guidance - 1) * decoder(latents, at, null)
        clean = clean_latents(process, latents, noise, at)
        if number > 1:
            latents = process.corrupt(clean, noise, end)
    return clean
