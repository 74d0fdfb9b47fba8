"""The trainable "autoencoder": encoders, projectors and signal decoder over a frozen KL-VAE, trained on clip shards.

A sample is one clip. Its encoders run once; the signal decoder then learns to predict the noise in its audio image and
in a few of its frames, while heads on the semantic features and a discriminator of decoded pictures add their terms
(section 3.1, Eq. 1 to 3; ``autoencoder_objective.py``). The clip and everything drawn at random for it are functions of
(seed, position) (``autoencoder_data.py``). The weights folder holds the KL-VAE as well, but not the discriminator.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale.common import rng
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import signals
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import strips, to_frames
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.discriminator import PICTURES, AudioVideoDiscriminator
from mmldm_scale.models.autoencoder.model import Autoencoder, save
from mmldm_scale.models.autoencoder.stable_diffusion import load_unet
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.dataset import ClipDataset
from mmldm_scale.trainables.autoencoder.loss import Reconstruction, fake_arrangements
from mmldm_scale.trainables.clip_stream import Clips
from mmldm_scale.training.data import validation_set
from mmldm_scale.training.data.validation_set import ValidationSamples
from mmldm_scale.training.trainable import Discriminator, Preview, Trainable

SHOWN_CLIPS = 2
SHOWN_FRAMES = 8  # of each clip in a strip
FROZEN = "autoencoder.kl_vae."  # names of the KL-VAE's weights among the module's


def build_trainable(config: AutoencoderTraining) -> Trainable:
    """Return the trainable that trains the autoencoder of ``config`` on its clip shards.

    Raises:
        UserError: shards, KL-VAE or U-Net are missing, damaged or of another kind, or sizes do not fit together, or
            the held-out clips are too few or are learned from.
    """
    vae = kl_vae.load(config.kl_vae)
    clips = Clips(config)
    _check_frames(config, clips.media)
    frozen = {f"{FROZEN}{name}": tensor for name, tensor in vae.state_dict().items()}
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    kl_vae.set_precision(vae.to(device), config.training.precision)
    module = Reconstruction(config, clips.media, vae, clips.classes)
    if config.unet is not None:  # to begin from: a carried-on run's own weights follow, so no fingerprint is in inputs
        for unet in module.autoencoder.decoder.unets.values():
            load_unet(unet, config.unet)
    validation = _validation(config, clips, module) if config.validation else None
    return Trainable(
        name="autoencoder",
        module=module,
        dataset=ClipDataset(config, clips, module.autoencoder),
        inputs={
            "shards": clips.samples.mixture.fingerprint,
            "kl_vae": pretrained.fingerprint(kl_vae.find(Path(config.kl_vae))),
        },
        flops_per_sample=forward_flops(config, module.autoencoder),
        write_weights=functools.partial(_write_weights, module.autoencoder, frozen),
        preview=functools.partial(_show, config, clips),
        quarantine=clips.samples.quarantine,
        validation=validation,
        weights=module.weights,
        discriminator=_discriminator(config),
        begin_step=module.begin_step,
    )


def _validation(config: AutoencoderTraining, clips: Clips, module: Reconstruction) -> ValidationSamples:
    """Return the held-out clips, in whole groups of those that the contrastive loss compares with one another."""
    settings = validation_set.settings(config, context_dropout=0.0)
    dataset = ClipDataset(settings, Clips(settings, clips.classes), module.autoencoder)
    return ValidationSamples(dataset, clips.samples.mixture, dataset.steps, group=max(1, module.group))


def _discriminator(config: AutoencoderTraining) -> Discriminator | None:
    adversarial = config.adversarial
    if not adversarial.weight:
        return None
    network = AudioVideoDiscriminator(config.discriminator)
    return Discriminator(AdversarialLoss(network, fake_arrangements, adversarial.loss), adversarial)


def _check_frames(config: AutoencoderTraining, media: MediaConfig) -> None:
    count = min(config.frames_per_clip, media.frames)
    if config.adversarial.weight and count < 2:
        raise UserError(
            f"frames_per_clip: the discriminator compares two frames of a clip, and there {'is' * count} {count}; "
            "adversarial.weight=0 fits, or frames_per_clip=2 of clips that have them"
        )


def _write_weights(model: Autoencoder, frozen: dict[str, Tensor], folder: Path, state: dict[str, Tensor]) -> None:
    """Write the averaged ``state`` of a :class:`Reconstruction`, and the KL-VAE, as a weights folder."""
    weights = {name.removeprefix("autoencoder."): tensor for name, tensor in {**state, **frozen}.items()}
    save(folder, model.config, model.media, model.kl_vae, model.classes, weights)


def _show(config: AutoencoderTraining, clips: Clips, module: Reconstruction, preview: Preview) -> None:
    """Show clips of the set beside what the autoencoder makes of them: pictures, video, audio image and sound."""
    model, device = module.autoencoder, next(module.parameters()).device
    vocoder = load_vocoder(None, clips.media.audio)
    for number, clip in enumerate(clips.spread(SHOWN_CLIPS)):
        frames, audio = signals([clip], module.audio_image, device)
        means = model.encode(frames, audio)
        random = rng.generator(0, "autoencoder/preview", number)
        shapes = (1, *model.noise_shape), (1, len(clip.frames), *model.noise_shape)
        noise = [torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(device) for shape in shapes]
        restored, sound = model.decode(means.audio.mean, means.video.mean, *noise, config.preview)
        shown = torch.linspace(0, len(clip.frames) - 1, min(SHOWN_FRAMES, len(clip.frames))).long()
        preview.image(f"clip_{number}/frames_original_above_restored", strips([frames[0, shown], restored[0, shown]]))
        preview.image(f"clip_{number}/sound_original_beside_restored", strips([torch.cat([audio, sound])]))
        preview.video(f"clip_{number}/restored", to_frames(restored[0]).cpu().numpy(), clips.media.fps)
        _listen(
            preview, number, clip, vocoder(module.audio_image.to_decibels(sound), len(clip.waveform))[0], clips.media
        )


def _listen(preview: Preview, number: int, clip: Clip, restored: Tensor, media: MediaConfig) -> None:
    preview.audio(f"clip_{number}/sound_original", torch.from_numpy(clip.waveform), media.audio.sample_rate)
    preview.audio(f"clip_{number}/sound_restored", restored.cpu(), media.audio.sample_rate)


def forward_flops(config: AutoencoderTraining, model: Autoencoder) -> float:
    """Return a sample's forward FLOPs, of which training takes three times as many.

    What of it runs less often is counted in thirds: the KL-VAE's encoder runs forward only. With a discriminator, which
    is counted as if it took part from the start, the KL-VAE's decoder and the discriminator's look at the decoded
    pictures run forward and back to their inputs, and real pictures pass the KL-VAE's decoder forward if they are to;
    learning from the real ones and the fakes is training as usual.
    """
    media, count = model.media, min(config.frames_per_clip, model.media.frames)
    with torch.device("meta"):
        twin = Autoencoder(model.config, media, AutoencoderKL.from_config(model.kl_vae.config), model.classes)
        twin.requires_grad_(False)
        network = AudioVideoDiscriminator(config.discriminator)
        pictures = torch.empty(PICTURES, 3, media.size, media.size)
        told = media.frames if model.config.decoder.estimate else count
        targets, times = torch.empty(1, told, dtype=torch.long), torch.empty(count, dtype=torch.long)
        noisy = torch.empty(max(count, PICTURES), *model.noise_shape)

    def trained() -> None:
        clean = noisy[:1]
        posteriors = twin.posteriors(clean.expand(1, media.frames, *model.noise_shape), clean)
        means = posteriors.audio.mean, posteriors.video.mean
        audio, video = twin.conditions(*means, targets, twin.semantics(*means))
        twin.decoder(noisy[:1], times[:1], audio)
        twin.decoder(noisy[:count], times, video.select(torch.empty(count, dtype=torch.long)))

    total = _flops(trained) + _flops(lambda: twin.picture_latents(pictures[:1])) * (media.frames + 1) / 3
    if config.adversarial.weight:
        decoding = _flops(lambda: twin.picture(noisy[:PICTURES]))
        thirds = 3 if config.real_pictures == "kl_vae" else 2
        looks = 1 + len(fake_arrangements(pictures[None], pictures[None])) + 2 / 3
        total += thirds / 3 * decoding + looks * _flops(lambda: network(pictures[None]))
    return total


def _flops(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        work()
    return flops.get_total_flops()
