"""The KL-VAE with its loss: maps a batch of :class:`~.dataset.PictureDataset` to a StepOutput."""

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models import lpips
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from mmldm_scale.training.trainable import Batch, DiscriminatorInputs, StepInfo, StepOutput, weighted_sum

DECODER = ("decoder.", "post_quant_conv.")  # prefixes of the parameters that fine-tuning trains


class PictureReconstruction(nn.Module):
    """The KL-VAE with its loss.

    Attributes:
        term_weights: weight of each term of the loss: "reconstruction"; "kl" if the KL-VAE is trained from scratch;
            "lpips" if ``config.lpips`` names its weights.
    """

    def __init__(self, config: KLVAETraining, vae: AutoencoderKL, audio_image: AudioImage) -> None:
        super().__init__()
        self.vae, self.audio_image = vae, audio_image
        self.fine_tuning = bool(config.kl_vae)
        if self.fine_tuning:
            for name, parameter in vae.named_parameters():
                parameter.requires_grad_(name.startswith(DECODER))
        self.error = torch.abs if config.reconstruction == "l1" else torch.square
        self.lpips = lpips.load_lpips(config.lpips) if config.lpips else None
        self.term_weights = {"reconstruction": 1.0}
        if not self.fine_tuning:
            self.term_weights["kl"] = config.kl_weight
        if self.lpips:
            self.term_weights["lpips"] = config.lpips_weight
        self.step = StepInfo()

    def begin_step(self, step: StepInfo) -> None:
        """Take note of the optimizer step that begins."""
        self.step = step

    def forward(self, batch: Batch) -> StepOutput:
        """Return the loss of B pictures and its terms, each (B,).

        The terms are "reconstruction", the mean absolute or squared error, "kl" in nats, and "lpips". The
        discriminator's inputs are the pictures and their reconstructions, (B, 1, 3, S, S) each; the reconstructions are
        the gradient probe.

        Args:
            batch: "frame" (B, S, S, 3) uint8; "waveform" (B, N); "audio" (B,) bool, true if the picture is the audio
                image, false if it is the frame; "noise" (B, c, s, s) standard normal, of the posterior's sample.
        """
        audio, frames = self.audio_image.encode(batch["waveform"]), to_signal(batch["frame"])  # (B, 3, S, S) each
        pictures = torch.where(batch["audio"].view(-1, 1, 1, 1), audio, frames)  # (B, 3, S, S)
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # three times as fast on a CPU
        posterior = self._posterior(pictures)
        restored: Tensor = self.vae.decode(posterior.sample(batch["noise"])).sample.float()  # (B, 3, S, S)
        terms = self._terms(pictures, restored, posterior)
        output = StepOutput(weighted_sum(terms, self.term_weights), terms)
        if self.step.adversarial:
            output.discriminator_inputs = DiscriminatorInputs(pictures[:, None], restored[:, None])
        if self.step.logged:
            output.gradient_probes["pictures"] = (restored,)
        return output

    def _posterior(self, pictures: Tensor) -> Gaussian:
        """Return the posteriors (B, c, s, s) of ``pictures`` (B, 3, S, S); a frozen encoder runs without gradients."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fine_tuning):
            moments = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        return Gaussian(moments.mean, moments.logvar)

    def _terms(self, pictures: Tensor, restored: Tensor, posterior: Gaussian) -> dict[str, Tensor]:
        """Return the terms of the loss by name, each (B,), for ``pictures`` and ``restored`` (B, 3, S, S)."""
        terms = {"reconstruction": self.error(restored - pictures).mean(dim=(1, 2, 3))}
        if not self.fine_tuning:
            terms["kl"] = posterior.kl()
        if self.lpips:
            terms["lpips"] = self.lpips(restored, pictures)
        return terms
