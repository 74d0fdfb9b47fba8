"""The loss that the autoencoder is trained with (section 3.1, Eq. 3), but for the discriminator's part in it.

    L = L_MSE + λ_cl L_cl + λ_co L_co + λ_kl (L_KL^a + L_KL^v) + λ_gan L_GAN

:class:`Reconstruction` computes all terms but the last, and, while a discriminator takes part, the pictures from which
the trainer computes that one (``trainables.adversarial_loss``).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from mmldm_scale.config import DiffusionConfig, MediaConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.autoencoder.semantic import Semantics
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.contrastive import contrastive_losses
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import Batch, DiscriminatorInputs, StepInfo, StepOutput, weighted_sum


class Reconstruction(nn.Module):
    """The autoencoder with its loss: a batch of ``ClipDataset`` in, each sample's losses out.

    A head without a loss would never learn: there is none for a weight of zero, nor, without ``classes``, a class. The
    KL-VAE is no part of the module, but stays on the device and in the precision that it comes in: an engine would cast
    it to float16, in which its activations overflow, split it over the processes, and save it with every checkpoint.

    Attributes:
        term_weights: λ of each term that there is, by its name.
    """

    def __init__(
        self, config: AutoencoderTraining, media: MediaConfig, vae: AutoencoderKL, classes: list[str], group: int
    ) -> None:
        """Build the networks around ``vae``; the contrastive term compares ``group`` clips (0: there is none)."""
        super().__init__()
        model = config.model if config.contrastive_weight else replace(config.model, contrastive_width=0)
        classes = classes if model.semantics and config.classification_weight else []
        self.autoencoder = Autoencoder(model, media, vae, classes)
        self.autoencoder.set_kl_vae_aside()
        self.audio_image = AudioImage(media)
        self.schedule = scheduler(DiffusionConfig())
        self.term_weights = _term_weights(config, self.autoencoder)
        self.restored = config.real_pictures == "kl_vae"
        self.group = group
        self.step = StepInfo()

    def begin_step(self, step: StepInfo) -> None:
        """Say which optimizer step the next batches belong to."""
        self.step = step

    def forward(self, batch: Batch) -> StepOutput:
        """Return the losses of B clips, each (B,) float32.

        ``loss`` is Eq. 3 without its last term. The terms, before their weights, are

        - "mse": the mean squared error of the noise predicted in the clip's pictures; the metrics "loss/audio" and
          "loss/video" are its two parts, on logged steps and in validation also by quarter of the schedule;
        - "kl_audio" and "kl_video": the posteriors' divergences in nats;
        - "classification": the cross-entropy of the class, 0 for a clip without one (the mean is over all clips);
        - "contrastive": Eq. 1, whose τ is the metric "temperature";
        - "estimate", if the decoder estimates the noise from the features alone: the mean squared error of that
          estimate, over all frames and the audio image alike. Ours; it teaches the encoders far faster than noise does.

        Args:
            batch: "frames" (B, F, S, S, 3) uint8, "waveform" (B, N), "label" (B,) the class or -1, "targets" (B, K)
                frame indices, and for each of them and, last, the audio image: "time" (B, K + 1) timesteps, "noise"
                (B, K + 1, c, s, s), "dropped" (B, K + 1) bool, those drawn without semantics and class; the posteriors'
                noises are "audio_noise" (B, C, H_a, W_a) and "video_noise" (B, C, H_v, W_v).
        """
        model = self.autoencoder
        frames, audio = to_signal(batch["frames"]), self.audio_image.encode(batch["waveform"])
        pictures = torch.cat([frames, audio[:, None]], dim=1)  # (B, F + 1, 3, S, S) in [-1, 1]
        latents = model.picture_latents(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # (B, F + 1, c, s, s)
        posteriors = model.posteriors(latents[:, :-1], latents[:, -1])
        perceptual = posteriors.audio.sample(batch["audio_noise"]), posteriors.video.sample(batch["video_noise"])
        semantics = model.semantics(*perceptual)
        terms = {"kl_audio": posteriors.audio.kl(), "kl_video": posteriors.video.kl()}
        conditions = self._conditions(batch, perceptual, semantics)
        if model.config.decoder.estimate:
            terms["estimate"] = _estimate_error(conditions, latents)
            conditions = conditions[0], conditions[1].select(_flat_rows(batch["targets"], frames.shape[1]))

        chosen = F.pad(batch["targets"], (0, 1), value=frames.shape[1])  # (B, K + 1): the audio image comes last
        clean = _at(latents, chosen)  # (B, K + 1, c, s, s)
        noisy, predicted = self._denoise(clean, batch, conditions)
        errors = (predicted - batch["noise"]).square().mean(dim=(2, 3, 4))  # (B, K + 1)
        terms |= {"mse": errors.mean(dim=1), **self._semantic_terms(semantics, batch["label"])}
        output = StepOutput(
            loss=weighted_sum(terms, self.term_weights),
            terms=terms,
            metrics=self._metrics(errors, batch),
        )
        if self.training and self.step.logged:
            output.gradient_probes["latents"] = perceptual
            if semantics is not None:
                output.gradient_probes["semantics"] = (semantics.audio, semantics.video)
        if self.training and self.step.adversarial:
            real = self._pictures(clean) if self.restored else _at(pictures, chosen)
            output.discriminator_inputs = self._discriminator_inputs(real, noisy, predicted, batch)
        return output

    def _metrics(self, errors: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the metrics, of the pictures' ``errors`` (B, K + 1), the audio image's last."""
        metrics = {"loss/audio": errors[:, -1], "loss/video": errors[:, :-1].mean(dim=1)}
        if "contrastive" in self.term_weights:
            metrics["temperature"] = self.autoencoder.temperature.detach().expand(len(errors))
        if self.step.logged or not self.training:
            metrics |= _by_time(errors, batch["time"], len(self.schedule.alphas_cumprod))
        return metrics

    def _conditions(
        self, batch: Batch, perceptual: tuple[Tensor, Tensor], semantics: Semantics | None
    ) -> tuple[Condition, Condition]:
        """Return what the decoder is told of the audio images and of the target frames; if it estimates, of all."""
        model, frames, dropped = self.autoencoder, batch["targets"], batch["dropped"][:, :-1]
        if model.config.decoder.estimate:
            total = batch["frames"].shape[1]
            everything = torch.arange(total, device=frames.device).expand(len(frames), -1)  # (B, F)
            dropped = torch.zeros_like(everything, dtype=torch.bool).scatter(1, frames, dropped)
            frames = everything
        labels = batch["label"] if model.classes else None
        return model.conditions(*perceptual, frames, semantics, labels, batch["dropped"][:, -1], dropped)

    def _denoise(self, clean: Tensor, batch: Batch, conditions: tuple[Condition, Condition]) -> tuple[Tensor, Tensor]:
        """Return ``clean`` with noise, and the noise that the decoder predicts in it: both (B, K + 1, c, s, s)."""
        time, decoder = batch["time"], self.autoencoder.decoder
        noisy = self.schedule.add_noise(clean.flatten(0, 1), batch["noise"].flatten(0, 1), time.flatten())
        noisy = noisy.unflatten(0, time.shape)
        audio = decoder(noisy[:, -1], time[:, -1], conditions[0])  # (B, c, s, s)
        video = decoder(noisy[:, :-1].flatten(0, 1), time[:, :-1].flatten(), conditions[1])  # (B·K, c, s, s)
        return noisy, torch.cat([video.unflatten(0, (len(audio), -1)), audio[:, None]], dim=1)

    def _semantic_terms(self, semantics: Semantics | None, labels: Tensor) -> dict[str, Tensor]:
        """Return the terms of the semantic features, (B,) each."""
        model, terms = self.autoencoder, {}
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
        """Return what the discriminator is shown: ⟨audio image, frame i, frame j⟩ with i < j, real and decoded.

        Decoding a clip whole takes many steps; what the decoder makes of the clip in the step that trains it is the
        clean latent as far as it can tell, ẑ = (z_t − √(1 − ᾱ) ε̂) / √ᾱ, which the KL-VAE turns into pictures. An error
        of ε̂ is √((1 − ᾱ) / ᾱ) times as large in ẑ, up to 15 times: ours is to weigh a clip's adversarial loss by √ᾱ of
        the noisiest of its three pictures, by which its gradients stay of the size of the squared error's.

        What the KL-VAE loses, its blur above all, tells every decoded picture from an original, and no autoencoder of
        its latents can learn to bring it back. ``real_pictures: kl_vae`` takes it from the real ones as well.

        Args:
            real: (B, K + 1, 3, S, S), the targets and the audio image, in the order of ``noisy`` and ``predicted``
                (B, K + 1, c, s, s).
        """
        targets = batch["targets"]
        pair = targets[:, :2].argsort(dim=1)  # (B, 2): which of the K targets, the earlier first
        shown = F.pad(pair, (1, 0), value=targets.shape[1])  # (B, 3): the audio image comes first
        kept = self.schedule.alphas_cumprod.to(targets.device)[_at(batch["time"], shown)]  # ᾱ, (B, 3)
        scale = kept[..., None, None, None]
        clean = (_at(noisy, shown) - (1 - scale).sqrt() * _at(predicted, shown)) / scale.sqrt()  # (B, 3, c, s, s)
        return DiscriminatorInputs(_at(real, shown), self._pictures(clean), weight=kept.amin(dim=1).sqrt())

    def _pictures(self, latents: Tensor) -> Tensor:
        """Return what the KL-VAE makes of ``latents`` (B, N, c, s, s): (B, N, 3, S, S)."""
        return self.autoencoder.picture(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


def fake_arrangements(real: Tensor, fake: Tensor) -> list[Tensor]:
    """Return the fakes that the discriminator learns from (Eq. 2), each (B, 3, 3, S, S).

    They are ⟨ā, v̄_i, v̄_j⟩, ⟨ā, v̄_i, v_j⟩, ⟨ā, v_i, v̄_j⟩ and ⟨ā, v̄_j, v̄_i⟩: a bar means decoded, and the last one
    is fake for its order alone.

    Args:
        real: ⟨a, v_i, v_j⟩, (B, 3, 3, S, S).
        fake: ⟨ā, v̄_i, v̄_j⟩, likewise.
    """
    (_, first, second), (audio, fake_first, fake_second) = real.unbind(1), fake.unbind(1)
    return [
        fake,
        torch.stack([audio, fake_first, second], dim=1),
        torch.stack([audio, first, fake_second], dim=1),
        torch.stack([audio, fake_second, fake_first], dim=1),
    ]


def _term_weights(config: AutoencoderTraining, model: Autoencoder) -> dict[str, float]:
    weights = {"mse": 1.0, "kl_audio": config.kl_weight, "kl_video": config.kl_weight}
    if model.config.decoder.estimate:
        weights["estimate"] = config.estimate_weight
    if model.classes:
        weights["classification"] = config.classification_weight
    if model.config.semantics and model.config.contrastive_width:
        weights["contrastive"] = config.contrastive_weight
    return weights


def _estimate_error(conditions: tuple[Condition, Condition], latents: Tensor) -> Tensor:
    """Return the mean squared error of the estimates of ``latents`` (B, F + 1, c, s, s), audio image last: (B,)."""
    audio, video = (condition.estimate.float().unflatten(0, (len(latents), -1)) for condition in conditions)
    errors = [(video - latents[:, :-1]).square(), (audio - latents[:, -1:]).square()]
    return sum(error.mean(dim=(1, 2, 3, 4)) for error in errors) / 2


def _by_time(errors: Tensor, time: Tensor, steps: int) -> dict[str, Tensor]:
    """Return the ``errors`` (B, K + 1), the audio image's last, by quarter of the schedule of ``steps``."""
    audio = metric_means.by_time({"loss/audio": errors[:, -1]}, time[:, -1], steps)
    return audio | metric_means.by_time({"loss/video": errors[:, :-1]}, time[:, :-1], steps)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Return for each sample the entries ``index`` (B, M) of its ``values`` (B, N, …): (B, M, …).

    Indexing, unlike ``gather``, has a deterministic backward pass on GPUs.
    """
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _flat_rows(targets: Tensor, frames: int) -> Tensor:
    """Return the rows (B·K,) of the frames ``targets`` (B, K) among all of a batch's frames, clip by clip."""
    first = torch.arange(len(targets), device=targets.device)[:, None] * frames
    return (first + targets).flatten()
