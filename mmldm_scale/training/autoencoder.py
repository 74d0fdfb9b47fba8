"""The task "autoencoder": encoders, projectors and signal decoder over a frozen KL-VAE, trained on clip shards.

A sample is one clip. Its encoders run once; the signal decoder then learns to predict the noise in its audio image and
in a few of its frames (section 3.1, the MSE and KL terms of Eq. 3). The clip, the frames, timesteps, noises and whether
the picture is mirrored are all functions of (seed, position). The weights folder holds the KL-VAE as well.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmldm_scale import counter
from mmldm_scale.config import AutoencoderTraining, DiffusionConfig, MediaConfig
from mmldm_scale.diffusion.schedule import scheduler
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.pixels import to_frames, to_signal
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.decoder import Condition
from mmldm_scale.models.autoencoder.model import Autoencoder, save
from mmldm_scale.training.clip_data import Clips, signals, strips
from mmldm_scale.training.task import Preview, Task

SHOWN_CLIPS = 2
SHOWN_FRAMES = 8  # of each clip in a strip
FROZEN = "autoencoder.kl_vae."  # names in the module's state


def build_task(config: AutoencoderTraining) -> Task:
    """Return the task that trains the autoencoder of ``config`` on its clip shards.

    Raises:
        UserError: shards or KL-VAE are missing, damaged or of another kind, or sizes do not fit together.
    """
    vae = kl_vae.load(config.kl_vae)
    clips = Clips(config)
    frozen = {
        f"{FROZEN}{name}": tensor.clone() for name, tensor in vae.state_dict().items()
    }  # engines cast the model's
    module = Reconstruction(config, clips.media, vae)
    return Task(
        name="autoencoder",
        module=module,
        dataset=ClipDataset(config, clips, module.autoencoder),
        inputs={
            "shards": clips.samples.mixture.fingerprint,
            "kl_vae": pretrained.fingerprint(kl_vae.find(Path(config.kl_vae))),
        },
        flops_per_sample=_forward_flops(config, clips.media, vae),
        write_weights=functools.partial(_write_weights, config, clips.media, vae, frozen),
        preview=functools.partial(_show, config, clips),
        quarantine=clips.samples.quarantine,
    )


class Reconstruction(nn.Module):
    """The autoencoder with its loss: a batch of :class:`ClipDataset` in, each sample's losses out."""

    def __init__(self, config: AutoencoderTraining, media: MediaConfig, vae: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(config.model, media, vae)
        self.audio_image = AudioImage(media)
        self.schedule = scheduler(DiffusionConfig())
        self.kl_weight, self.estimate_weight = config.kl_weight, config.estimate_weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of each clip, each (B,) float32.

        "loss/audio" and "loss/video" are the mean squared errors of the predicted noise, "kl/audio" and "kl/video" the
        posteriors' divergences in nats, and "loss" is the mean error of all pictures plus kl_weight times both. If the
        decoder guesses from an estimate, "loss/estimate" is the mean squared error of that, over all frames and the
        audio image alike, and joins "loss" with estimate_weight: it teaches the encoders far quicker than noise does.

        Args:
            batch: "frames" (B, F, S, S, 3) uint8, "waveform" (B, N), "targets" (B, K) frame indices, "time" (B, K + 1)
                timesteps (the audio image's last), "noise" (B, K + 1, c, s, s) likewise, and the posteriors' noises
                "audio_noise" (B, C, H_a, W_a) and "video_noise" (B, C, H_v, W_v).
        """
        model, targets = self.autoencoder, batch["targets"]
        frames, audio = to_signal(batch["frames"]), self.audio_image.encode(batch["waveform"])
        latents = model.picture_latents(torch.cat([frames, audio[:, None]], dim=1).flatten(0, 1))
        latents = latents.unflatten(0, (len(audio), -1))  # (B, F + 1, c, s, s)
        posteriors = model.posteriors(latents[:, :-1], latents[:, -1])
        perceptual = posteriors.audio.sample(batch["audio_noise"]), posteriors.video.sample(batch["video_noise"])
        wanted = torch.cat([targets, torch.full_like(targets[:, :1], frames.shape[1])], dim=1)  # (B, K + 1)
        clean = latents.gather(1, wanted[..., None, None, None].expand_as(batch["noise"]))
        everything = torch.arange(frames.shape[1], device=targets.device).expand(len(targets), -1)  # (B, F)
        estimating = model.config.decoder.estimate
        told = model.conditions(*perceptual, everything if estimating else targets, model.semantics(*perceptual))
        first = torch.arange(len(targets), device=targets.device)[:, None] * frames.shape[1]
        chosen = told[1].select((first + targets).flatten()) if estimating else told[1]
        errors = self._errors(clean, batch["noise"], batch["time"], (told[0], chosen))
        kl = {"kl/audio": posteriors.audio.kl(), "kl/video": posteriors.video.kl()}
        loss = errors.mean(dim=1) + self.kl_weight * (kl["kl/audio"] + kl["kl/video"])
        values = {"loss/audio": errors[:, -1], "loss/video": errors[:, :-1].mean(dim=1), **kl}
        if estimating:
            values["loss/estimate"] = _estimate_error(told, latents)
            loss = loss + self.estimate_weight * values["loss/estimate"]
        return {"loss": loss, **values}

    def _errors(self, clean: Tensor, noise: Tensor, time: Tensor, conditions: tuple) -> Tensor:
        """Return the mean squared error of the noise predicted for each picture: (B, K + 1)."""
        noisy = self.schedule.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), time.flatten()).unflatten(
            0, time.shape
        )
        decoder = self.autoencoder.decoder
        audio = decoder(noisy[:, -1], time[:, -1], conditions[0])  # (B, c, s, s)
        video = decoder(noisy[:, :-1].flatten(0, 1), time[:, :-1].flatten(), conditions[1])  # (B·K, c, s, s)
        predicted = torch.cat([video.unflatten(0, (len(audio), -1)), audio[:, None]], dim=1)
        return (predicted - noise).square().mean(dim=(2, 3, 4))


def _estimate_error(told: tuple[Condition, Condition], latents: Tensor) -> Tensor:
    """Return the mean squared error of the estimates of ``latents`` (B, F + 1, c, s, s), audio image last: (B,)."""
    audio, video = (condition.estimate.float().unflatten(0, (len(latents), -1)) for condition in told)
    errors = [(video - latents[:, :-1]).square(), (audio - latents[:, -1:]).square()]
    return sum(error.mean(dim=(1, 2, 3, 4)) for error in errors) / 2


class ClipDataset:
    """Training samples by global position, as :class:`Reconstruction` takes them."""

    def __init__(self, config: AutoencoderTraining, clips: Clips, model: Autoencoder) -> None:
        self.config, self.clips = config, clips
        self.shapes = {"audio_noise": model.audio_shape, "video_noise": model.video_shape}
        self.noise_shape = model.noise_shape
        self.steps = DiffusionConfig().steps

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """Return the sample at ``position``; see :meth:`Reconstruction.forward` for its parts."""
        random = counter.generator(self.config.training.seed, "autoencoder", position)
        total = self.clips.media.frames
        count = min(self.config.frames_per_clip, total)
        clip = self.clips.clip(position)
        mirrored = random.random() < self.config.flip
        frames = clip.frames[:, :, ::-1] if mirrored else clip.frames
        # One offset, evenly spaced: each timestep is uniform, and every clip covers the schedule from end to end.
        places = (random.permutation(count + 1) + random.random()) / (count + 1)
        drawn = {
            "targets": random.choice(total, count, replace=False),
            "time": (places * self.steps).astype(np.int64),
            "noise": random.standard_normal((count + 1, *self.noise_shape), dtype=np.float32),
            **{name: random.standard_normal(shape, dtype=np.float32) for name, shape in self.shapes.items()},
        }
        sample = {"frames": np.ascontiguousarray(frames), "waveform": clip.waveform, **drawn}
        return {name: torch.from_numpy(array) for name, array in sample.items()}


def _write_weights(
    config: AutoencoderTraining,
    media: MediaConfig,
    vae: AutoencoderKL,
    frozen: dict[str, Tensor],
    folder: Path,
    state: dict[str, Tensor],
) -> None:
    """Write the averaged ``state`` of a :class:`Reconstruction`, and the KL-VAE, as a weights folder."""
    weights = {name.removeprefix("autoencoder."): tensor for name, tensor in {**state, **frozen}.items()}
    save(folder, config.model, media, vae, (), weights)


def _show(config: AutoencoderTraining, clips: Clips, module: Reconstruction, preview: Preview) -> None:
    """Show clips of the set beside what the autoencoder makes of them: pictures, video, audio image and sound."""
    model, device = module.autoencoder, next(module.parameters()).device
    vocoder = load_vocoder(None, clips.media.audio)
    for number, clip in enumerate(clips.spread(SHOWN_CLIPS)):
        frames, audio = signals([clip], module.audio_image, device)
        means = model.encode(frames, audio)
        random = counter.generator(0, "autoencoder/preview", number)
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


def _forward_flops(config: AutoencoderTraining, media: MediaConfig, vae: AutoencoderKL) -> float:
    """Return a sample's forward FLOPs, of which training takes three times as many.

    The KL-VAE's run forward only, so that a third of them is counted.
    """
    count = min(config.frames_per_clip, media.frames)
    with torch.device("meta"):
        model = Autoencoder(config.model, media, AutoencoderKL.from_config(vae.config))
        pictures = torch.empty(1, 3, media.size, media.size)
        told = media.frames if config.model.decoder.estimate else count
        targets, times = torch.empty(1, told, dtype=torch.long), torch.empty(count, dtype=torch.long)
        noisy = torch.empty(count, *model.noise_shape)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        latent = model.picture_latents(pictures)
        frozen = flops.get_total_flops()
        posteriors = model.posteriors(latent.expand(1, media.frames, *model.noise_shape), latent)
        means = posteriors.audio.mean, posteriors.video.mean
        audio, video = model.conditions(*means, targets, model.semantics(*means))
        model.decoder(noisy[:1], times[:1], audio)
        model.decoder(noisy, times, video.select(torch.empty(count, dtype=torch.long)))
    return flops.get_total_flops() - frozen + frozen * (media.frames + 1) / 3
