"""The autoencoder with its loss (section 3.1, Eq. 3), except for the adversarial term.

    L = L_MSE + λ_cl L_cl + λ_co L_co + λ_kl (L_KL^a + L_KL^v) + λ_gan L_GAN

A model of one modality alone has that modality's parts of L_MSE and L_KL, no L_co, and without audio an L_GAN of pairs
of frames (ours).

:class:`Reconstruction` computes all terms but the last. In steps in which a discriminator takes part, it also returns
the pictures from which the training loop computes the last one (``trainables.adversarial_loss``).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from mmldm_scale.common.modalities import Modality, as_pair, by_modality
from mmldm_scale.config import DiffusionConfig, MediaConfig
from mmldm_scale.diffusion.noise_process import Diffusion
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.pictures import join, split
from mmldm_scale.models.autoencoder.semantic import Semantics
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.contrastive import contrastive_losses
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import Batch, DiscriminatorInputs, StepInfo, StepOutput, weighted_sum


class Reconstruction(nn.Module):
    """The autoencoder with its loss: maps a batch of :class:`~.dataset.ClipDataset` to a StepOutput.

    A head whose term has weight 0 is not built, nor is the classification head without ``classes``, since neither would
    learn. The KL-VAE is not a sub-module; it keeps its device and precision. An engine would cast it to float16, in
    which its activations overflow, shard it over the processes, and save it in every checkpoint.

    Attributes:
        term_weights: λ of each term by name.
        group: number of clips that the contrastive term compares with one another; 0 without that term.
    """

    def __init__(
        self, config: AutoencoderTraining, media: MediaConfig, vae: AutoencoderKL, classes: list[str], group: int
    ) -> None:
        """Build the networks around ``vae``.

        Args:
            media: format of a clip.
            vae: the frozen KL-VAE.
            classes: names of the classes; empty if no clip has one.
            group: number of clips that the contrastive term compares; 0 without that term.
        """
        super().__init__()
        model = config.model if config.contrastive_weight else replace(config.model, contrastive_width=0)
        classes = classes if model.semantics and config.classification_weight else []
        self.autoencoder = Autoencoder(model, media, vae, classes)
        self.autoencoder.set_aside("kl_vae")
        self.audio_image = AudioImage(media)
        self.process = Diffusion(DiffusionConfig())
        self.term_weights = _term_weights(config, self.autoencoder)
        # of the parts of L_MSE, by metric
        self.error_weights = {f"loss/{name}": getattr(config.loss_weights, name) for name in model.modalities}
        self.mean_signal = self.process.alphas_cumprod.sqrt().mean()  # (), of √ᾱ over the schedule
        self.restored = config.real_pictures == "kl_vae"
        self.group = group
        self.step = StepInfo()

    def begin_step(self, step: StepInfo) -> None:
        """Take note of the optimizer step that begins."""
        self.step = step

    def forward(self, batch: Batch) -> StepOutput:
        """Return the losses of B clips, each (B,) float32.

        ``loss`` is Eq. 3 without its last term. A model of one modality alone has those of the terms that concern it.
        The terms, before they are weighted, are

        - "mse": mean squared error of the noise predicted in the audio image plus that in the target frames (the mean
          over them), each with its modality's weight of ``loss_weights``. The metrics "loss/audio" and "loss/video"
          are its two parts without weights, on logged steps and in validation also by quarter of the schedule;
        - "kl_audio", "kl_video": KL divergences of the posteriors in nats;
        - "classification": cross-entropy of the class, 0 for a clip without a class (the mean is over all clips);
        - "contrastive": Eq. 1; its τ is the metric "temperature";
        - "estimate", if the decoder has ``estimate``: mean squared error of the clean latents estimated from the
          features alone, of all frames and the audio image. Ours; the encoders learn much faster with it.

        Args:
            batch: "frames" (B, F, S, S, 3) uint8 if the model has video; "waveform" (B, N) if it has audio; "label"
                (B,), the class or -1; "targets" (B, K), indices of the target frames, K = 0 without video. For each of
                the P decoded pictures, the targets and, last, the audio image: "time" (B, P), timesteps; "noise"
                (B, P, c, s, s); "dropped" (B, P) bool, true if it is decoded without its condition
                (:meth:`SignalDecoder.drop`). Noise of the posteriors: "audio_noise" (B, C, H_a, W_a) and
                "video_noise" (B, C, H_v, W_v).
        """
        model = self.autoencoder
        pictures = self._pictures_of(batch)  # (B, Q, 3, S, S) in [-1, 1]; Q: all of a clip
        latents = model.clip_latents(pictures)  # (B, Q, c, s, s)
        posteriors = model.posteriors_of(latents).present
        perceptual = {name: posterior.sample(batch[f"{name}_noise"]) for name, posterior in posteriors.items()}
        semantics = model.semantics(*as_pair(perceptual))
        terms = {f"kl_{name}": posterior.kl() for name, posterior in posteriors.items()}
        conditions = self._conditions(batch, perceptual, semantics)
        if model.config.decoder.estimate:
            terms["estimate"] = self._estimate_error(conditions, latents)
            if "video" in conditions:
                rows = _flat_rows(batch["targets"], batch["frames"].shape[1])
                conditions["video"] = conditions["video"].select(rows)
        dropped = split(batch["dropped"], model.modalities)
        conditions = {
            name: model.decoder.drop(name, condition, dropped[name].flatten()) for name, condition in conditions.items()
        }

        chosen = self._chosen(batch["targets"], pictures.shape[1])  # (B, P)
        clean = _at(latents, chosen)  # (B, P, c, s, s)
        noisy, predicted = self._denoise(clean, batch, conditions)
        errors = (predicted - batch["noise"]).square().mean(dim=(2, 3, 4))  # (B, P)
        metrics = self._metrics(errors, batch)
        terms["mse"] = weighted_sum(metrics, self.error_weights)
        terms |= self._semantic_terms(semantics, batch["label"])
        output = StepOutput(loss=weighted_sum(terms, self.term_weights), terms=terms, metrics=metrics)
        if self.training and self.step.logged:
            output.gradient_probes["latents"] = tuple(perceptual.values())
            if semantics is not None:
                output.gradient_probes["semantics"] = tuple(semantics.present.values())
        if self.training and self.step.adversarial:
            real = self._pictures(clean) if self.restored else _at(pictures, chosen)
            output.discriminator_inputs = self._discriminator_inputs(real, noisy, predicted, batch)
        return output

    def _pictures_of(self, batch: Batch) -> Tensor:
        """Return all pictures of the clips, (B, Q, 3, S, S) in [-1, 1]: the frames and, last, the audio image."""
        frames = to_signal(batch["frames"]) if "frames" in batch else None
        sound = self.audio_image.encode(batch["waveform"])[:, None] if "waveform" in batch else None
        return join(by_modality(sound, frames))

    def _chosen(self, targets: Tensor, total: int) -> Tensor:
        """Return which of the ``total`` pictures are decoded, (B, P): the ``targets`` (B, K), then the audio image."""
        return F.pad(targets, (0, 1), value=total - 1) if "audio" in self.autoencoder.modalities else targets

    def _metrics(self, errors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the metrics of the decoded pictures' squared ``errors`` (B, P)."""
        modalities = self.autoencoder.modalities
        parts, times = split(errors, modalities), split(batch["time"], modalities)
        metrics = {f"loss/{name}": part.mean(dim=1) for name, part in parts.items()}
        if "contrastive" in self.term_weights:
            metrics["temperature"] = self.autoencoder.temperature.detach().expand(len(errors))
        if self.step.logged or not self.training:
            for name, part in parts.items():
                metrics |= metric_means.by_time({f"loss/{name}": part}, times[name], self.process.length)
        return metrics

    def _conditions(
        self, batch: Batch, perceptual: Mapping[Modality, Tensor], semantics: Semantics | None
    ) -> dict[Modality, Condition]:
        """Return the decoder's conditions for the audio images and the target frames; all frames if it estimates."""
        model, frames = self.autoencoder, batch["targets"]
        if model.config.decoder.estimate and "frames" in batch:
            total = batch["frames"].shape[1]
            frames = torch.arange(total, device=frames.device).expand(len(frames), -1)  # (B, F)
        labels = batch["label"] if model.classes else None
        return dict(zip(perceptual, model.conditions(*as_pair(perceptual), frames, semantics, labels), strict=True))

    def _denoise(self, clean: Tensor, batch: Batch, conditions: Mapping[Modality, Condition]) -> tuple[Tensor, Tensor]:
        """Return ``clean`` with noise added, and the predicted noise, both (B, P, c, s, s) like ``clean``."""
        time, model = batch["time"], self.autoencoder
        noisy = self.process.corrupt(clean.flatten(0, 1), batch["noise"].flatten(0, 1), time.flatten())
        noisy = noisy.unflatten(0, time.shape)  # (B·P, c, s, s) -> (B, P, c, s, s)
        parts, times = split(noisy, model.modalities), split(time, model.modalities)
        predicted = {  # (B·K, c, s, s) -> (B, K, c, s, s) of each modality
            name: model.decoder(part.flatten(0, 1), times[name].flatten(), conditions[name]).view_as(part)
            for name, part in parts.items()
        }
        return noisy, join(predicted)

    def _estimate_error(self, conditions: Mapping[Modality, Condition], latents: Tensor) -> Tensor:
        """Return the mean squared error (B,) of the estimates of all pictures' ``latents`` (B, Q, c, s, s)."""
        errors = []
        for name, clean in split(latents, self.autoencoder.modalities).items():
            estimate = conditions[name].estimate
            assert estimate is not None  # every condition of a decoder with ``estimate`` has one
            errors.append((estimate.float().view_as(clean) - clean).square().mean(dim=(1, 2, 3, 4)))
        return torch.stack(errors).mean(dim=0)

    def _semantic_terms(self, semantics: Semantics | None, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of the semantic features, (B,) each, for ``labels`` (B,)."""
        model = self.autoencoder
        terms: dict[str, Tensor] = {}
        if semantics is None:
            return terms
        if "classification" in self.term_weights:
            logits = model.classify(semantics)  # (B, n_classes)
            terms["classification"] = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        if "contrastive" in self.term_weights:
            features = model.contrast(semantics)
            terms["contrastive"] = contrastive_losses(*features, model.temperature, self.group)
        return terms

    def _discriminator_inputs(
        self, real: Tensor, noisy: Tensor, predicted: Tensor, batch: Batch
    ) -> DiscriminatorInputs:
        """Return the discriminator's triples ⟨audio image, frame i, frame j⟩ with i < j, real and decoded.

        Without audio they are pairs of frames.

        Sampling a clip takes many steps. In a training step the decoded pictures are those of the estimated clean
        latents, ẑ = (z_t − √(1 − ᾱ) ε̂) / √ᾱ. An error of ε̂ is amplified in ẑ by √((1 − ᾱ) / ᾱ), up to 15 times, and
        so is the gradient that the adversarial term sends back to ε̂. Therefore (ours; the public code has no such
        weight) the gradient that reaches each picture is multiplied by √ᾱ of its own timestep, so that none is
        amplified, divided by the mean of √ᾱ over the schedule. Timesteps are uniform, so the mean factor is 1, and
        λ_gan acts at its full weight. The pictures themselves, and the discriminator's own loss, have no weight.

        The KL-VAE's losses, mainly blur, distinguish every decoded picture from an original, and the autoencoder cannot
        learn to avoid them. With ``real_pictures: kl_vae`` the real pictures pass through the KL-VAE as well (ours).

        Args:
            real: (B, P, 3, S, S), the target frames and, last, the audio image.
            noisy: (B, P, c, s, s), their noisy latents.
            predicted: (B, P, c, s, s), the noise predicted in these.
        """
        targets = batch["targets"]
        triple = targets[:, :2].argsort(dim=1)  # (B, 2), which of the K targets, the earlier frame first
        if "audio" in self.autoencoder.modalities:
            triple = F.pad(triple, (1, 0), value=targets.shape[1])  # (B, 3), the audio image first
        alpha_bar = self.process.alpha_bar(_at(batch["time"], triple))[..., None, None, None]  # (B, 3, 1, 1, 1)
        signal = alpha_bar.sqrt()
        clean = (_at(noisy, triple) - (1 - alpha_bar).sqrt() * _at(predicted, triple)) / signal  # (B, 3, c, s, s)
        clean = _scale_gradient(clean, signal / self.mean_signal)
        return DiscriminatorInputs(_at(real, triple), self._pictures(clean))

    def _pictures(self, latents: Tensor) -> Tensor:
        """Return the KL-VAE's pictures (B, N, 3, S, S) of ``latents`` (B, N, c, s, s)."""
        return self.autoencoder.picture(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


def fake_arrangements(real: Tensor, fake: Tensor) -> list[Tensor]:
    """Return the four fakes of the discriminator's loss (Eq. 2), each (B, P, 3, S, S).

    They are ⟨ā, v̄_i, v̄_j⟩, ⟨ā, v̄_i, v_j⟩, ⟨ā, v_i, v̄_j⟩ and ⟨ā, v̄_j, v̄_i⟩, where a bar means decoded. The last one
    has its frames in the wrong order. Of a model without audio, ā is missing in all of them.

    Args:
        real: ⟨a, v_i, v_j⟩, (B, P, 3, S, S), P = 3; ⟨v_i, v_j⟩, P = 2.
        fake: ⟨ā, v̄_i, v̄_j⟩, (B, P, 3, S, S), likewise.
    """
    (*_, first, second), (*audio, fake_first, fake_second) = real.unbind(1), fake.unbind(1)
    return [
        fake,
        torch.stack([*audio, fake_first, second], dim=1),
        torch.stack([*audio, first, fake_second], dim=1),
        torch.stack([*audio, fake_second, fake_first], dim=1),
    ]


def _term_weights(config: AutoencoderTraining, model: Autoencoder) -> dict[str, float]:
    """Return λ of each term by name; terms whose heads ``model`` does not have are left out."""
    weights = {"mse": 1.0, **{f"kl_{name}": config.kl_weight for name in model.modalities}}
    if model.config.decoder.estimate:
        weights["estimate"] = config.estimate_weight
    if model.classes:
        weights["classification"] = config.classification_weight
    if model.has_contrastive_head:
        weights["contrastive"] = config.contrastive_weight
    return weights


def _scale_gradient(values: Tensor, factor: Tensor) -> Tensor:
    """Return ``values``, bit for bit; the gradient that goes back through them is multiplied by ``factor``."""
    fixed = values.detach()
    return fixed + factor * (values - fixed)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Return for each sample the entries ``index`` (B, M) of its ``values`` (B, N, …), as (B, M, …).

    Indexing, unlike ``gather``, has a deterministic backward pass on GPUs.
    """
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _flat_rows(targets: Tensor, frames: int) -> Tensor:
    """Return the rows (B·K,) of the frames ``targets`` (B, K) among the B·F ``frames`` of a batch, clip by clip."""
    first = torch.arange(len(targets), device=targets.device)[:, None] * frames
    return (first + targets).flatten()  # (B, K) -> (B·K,)
