"""Parameters and arithmetic of the paper's autoencoder: ``print(autoencoder_info())``."""

import torch
from torch import nn

from mmldm_scale.config import AutoencoderConfig, DiscriminatorConfig, KLVAEConfig, MediaConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.discriminator import AudioVideoDiscriminator
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.flop_counter import flops_of

CLASSES = 9  # classes of the Landscape data set


def autoencoder_info() -> str:
    """Return two tables: parameters of each part (millions), and MACs (10⁹) of encoding a clip, decoding a picture."""
    with torch.device("meta"):
        vae = kl_vae.build(KLVAEConfig())  # its defaults are Stable Diffusion's
        model = Autoencoder(AutoencoderConfig(), MediaConfig(), vae, [""] * CLASSES)
        discriminator = AudioVideoDiscriminator(DiscriminatorConfig())
    rows = [f"{'autoencoder at 256²':<34}{'parameters':>12}"]
    rows += [f"{name:<34}{_count(*parts) / 1e6:>10.1f} M" for name, parts in _parts(model, discriminator).items()]
    rows += ["", f"{'':<34}{'MACs':>12}"]
    rows += [f"{name:<34}{macs / 1e9:>10.1f} G" for name, macs in _arithmetic(model).items()]
    return "\n".join(rows)


def _parts(model: Autoencoder, discriminator: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the modules of each part, by the part's name. Together they are the whole model."""
    decoder = model.decoder
    embeddings = [part for name, part in decoder.named_children() if name not in ("unets", "pyramids")]
    return {
        "KL-VAE (frozen)": [model.kl_vae],
        "audio encoder": [model.audio_encoder],
        "video encoder": [model.video_encoder],
        "projectors": [model.get_submodule(f"{name}_projector") for name in model.modalities],
        "heads": [model.classification_head, model.contrastive_head],
        "signal decoder: U-Net": [decoder.unets],
        "signal decoder: feature pyramids": [decoder.pyramids],
        "signal decoder: embeddings": embeddings,
        "discriminator (training only)": [discriminator],
    }


def decoding_macs(model: Autoencoder) -> tuple[int, int]:
    """Return the MACs of decoding one picture: of one step of the signal decoder, and of the KL-VAE's decoder.

    Args:
        model: on the meta device: only shapes are computed.
    """
    with torch.device("meta"):
        latents = torch.empty(1, *model.noise_shape)
        audio, video = (torch.empty(1, *shape) if shape else None for shape in (model.audio_shape, model.video_shape))
        index = None if video is None else torch.zeros(1, 1, dtype=torch.long)
        condition = model.conditions(audio, video, index, model.semantics(audio, video))[-1]
        time = torch.zeros(1, dtype=torch.long)
    return flops_of(lambda: model.decoder(latents, time, condition)) // 2, flops_of(lambda: model.picture(latents)) // 2


def _arithmetic(model: Autoencoder) -> dict[str, int]:
    """Return the MACs of each operation, by its name."""
    frames, size = model.media.frames, model.media.size
    with torch.device("meta"):
        pictures = torch.empty(frames + 1, 3, size, size)
        latents = torch.empty(1, frames + 1, *model.noise_shape)
    drawn, decoded = decoding_macs(model)
    return {
        f"KL-VAE encodes {frames} frames, sound": flops_of(lambda: model.picture_latents(pictures)) // 2,
        "encoders": flops_of(lambda: model.posteriors(latents[:, :-1], latents[:, -1])) // 2,
        "U-Net, a picture and step": drawn,
        "KL-VAE decodes a picture": decoded,
    }


def _count(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
