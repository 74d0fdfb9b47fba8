import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from mmldm_scale.config import AutoencoderConfig, AutoencoderTraining, DecodingConfig
from mmldm_scale.errors import UserError
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.training.autoencoder import build_task
from mmldm_scale.training.task import Task
from tests.models.autoencoder import tiny
from tests.training.clip_sets import clip, write_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip shards and a KL-VAE."""
    folder = tmp_path_factory.mktemp("autoencoder")
    write_clips(folder / "clips")
    torch.manual_seed(0)
    kl_vae.save(folder / "kl_vae", kl_vae.build(tiny.KL_VAE, scaling_factor=3.0))
    return folder


def task(data: Path, seed: int = 0, model: AutoencoderConfig = tiny.CONFIG, **settings) -> Task:
    torch.manual_seed(0)
    settings = {"shards": [str(data / "clips")], "kl_vae": str(data / "kl_vae"), "kl_weight": 1e-4} | settings
    config = AutoencoderTraining(model=model, preview=DecodingConfig(steps=2), **settings)
    config.training.seed = seed
    return build_task(config)


def losses(one: Task, positions: range) -> dict[str, torch.Tensor]:
    return one.module(default_collate([one.dataset[position] for position in positions]))


def test_losses_are_what_they_are_called(data):
    one = task(data)
    found = losses(one, range(3))
    assert all(value.shape == (3,) for value in found.values())
    pictures = (found["loss/audio"] + 2 * found["loss/video"]) / 3
    torch.testing.assert_close(found["loss"], pictures + 1e-4 * (found["kl/audio"] + found["kl/video"]))


def test_an_all_knowing_decoder_has_no_loss(data, monkeypatch):
    """The noise that is to be predicted is that which was added to the target frames, in their order."""
    one = task(data)
    model, batch = one.module.autoencoder, default_collate([one.dataset[position] for position in range(2)])
    frames = batch["frames"].movedim(-1, -3).float() / 127.5 - 1
    chosen = torch.cat([frames[0, batch["targets"][0]], frames[1, batch["targets"][1]]])
    latents = {
        2: model.picture_latents(one.module.audio_image.encode(batch["waveform"])),
        4: model.picture_latents(chosen),
    }

    def solve(noisy, time, condition):
        kept = one.module.schedule.alphas_cumprod[time].view(-1, 1, 1, 1)
        return (noisy - kept.sqrt() * latents[len(noisy)]) / (1 - kept).sqrt()

    monkeypatch.setattr(model.decoder, "forward", solve)
    found = one.module(batch)
    assert max(found["loss/audio"].max(), found["loss/video"].max()) < 1e-6


def test_a_samples_loss_is_its_own(data):
    """It is the same in any batch, and so for any number of processes; another seed gives other losses."""
    one = task(data)
    together = losses(one, range(4))
    apart = [losses(one, range(2)), losses(one, range(2, 4))]
    for name, values in together.items():
        torch.testing.assert_close(values, torch.cat([part[name] for part in apart]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together["loss"], losses(task(data, seed=1), range(4))["loss"])


def test_samples_cover_frames_times_and_mirror_images(data):
    dataset = task(data, frames_per_clip=3).dataset
    samples = [dataset[position] for position in range(60)]
    assert {int(t) for sample in samples for t in sample["targets"]} == {0, 1, 2, 3}
    assert all(len(set(sample["targets"].tolist())) == 3 for sample in samples)
    times = np.array([sample["time"].tolist() for sample in samples])
    assert ((times >= 0) & (times < 1000)).all()
    assert all(np.histogram(times[:, i], bins=4, range=(0, 1000))[0].min() > 3 for i in range(4))
    mirrored = [sample["frames"][0, 0, 0, 0].item() < 246 for sample in samples]
    assert 15 < sum(mirrored) < 45  # the bar begins at the left
    straight = task(data, flip=0.0).dataset[0]["frames"].numpy().astype(int)
    assert min(np.abs(straight - clip(n).frames).max() for n in range(6)) < 40  # a JPEG's difference


def test_learns_from_one_clip_and_tells_frames_apart(data, tmp_path):
    one = task(data, shards=[str(write_clips(tmp_path / "one", 1))], flip=0.0, frames_per_clip=4)
    optimizer = torch.optim.Adam([p for p in one.module.parameters() if p.requires_grad], lr=3e-3)
    before = {name: p.clone() for name, p in one.module.autoencoder.kl_vae.named_parameters()}
    history = []
    for step in range(60):
        loss = losses(one, range(4 * step, 4 * step + 4))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
    assert all(torch.equal(p, before[name]) for name, p in one.module.autoencoder.kl_vae.named_parameters())

    model = one.module.autoencoder
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, *model.noise_shape, generator=random).expand(-1, 4, -1, -1, -1)
    latents = torch.zeros(1, *model.audio_shape), torch.randn(1, *model.video_shape, generator=random)
    frames = model.decode(*latents, noise[:, 0], noise, DecodingConfig(steps=2))[0][0]
    assert not torch.allclose(frames[0], frames[3], atol=1e-3)


def test_a_guess_from_the_features_starts_lower(data):
    scratch = dataclasses.replace(
        tiny.CONFIG, shortcut=True, decoder=dataclasses.replace(tiny.CONFIG.decoder, estimate=True)
    )
    plain, guessing = (losses(task(data, model=model), range(8))["loss"].mean() for model in (tiny.CONFIG, scratch))
    assert guessing < 0.5 * plain


def test_weights_folder_is_whole(data, tmp_path):
    one = task(data)
    trained = {name: p for name, p in one.module.named_parameters() if p.requires_grad}
    original = {name: p.clone() for name, p in one.module.autoencoder.state_dict().items()}
    one.module.bfloat16()  # as an engine does; the averaged weights it hands over are float32
    one.write_weights(tmp_path, {name: original[name.removeprefix("autoencoder.")] for name in trained})
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.media == tiny.MEDIA
    assert loaded.kl_vae.config.scaling_factor == 3.0
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.state_dict().items())


def test_low_precision_agrees(data):
    one = task(data)
    full = losses(one, range(2))
    one.module.bfloat16()
    low = losses(one, range(2))
    assert all(value.dtype == torch.float32 for value in low.values())
    torch.testing.assert_close(low["loss"], full["loss"], rtol=0.02, atol=0.02)


class Shown:
    """A preview that remembers."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}

    def image(self, tag, image):
        self.seen[tag] = image

    def video(self, tag, frames, fps):
        self.seen[tag] = torch.from_numpy(frames)

    def audio(self, tag, waveform, sample_rate):
        self.seen[tag] = waveform


def test_preview_shows_pictures_video_and_sound_and_always_the_same(data):
    one, first, second = task(data), Shown(), Shown()
    with torch.no_grad():
        one.preview(one.module, first)
        torch.rand(3)  # nothing hangs on the global generator
        one.preview(one.module, second)
    assert first.seen["clip_0/frames_original_above_restored"].shape == (3, 2 * 32, 4 * 32)
    assert first.seen["clip_0/restored"].shape == (4, 32, 32, 3)
    assert first.seen["clip_1/sound_restored"].shape == (tiny.MEDIA.audio_samples,)
    assert all(torch.equal(value, second.seen[tag]) for tag, value in first.seen.items())


def test_flops_grow_with_the_target_frames(data):
    counts = [task(data, frames_per_clip=count).flops_per_sample for count in (1, 2, 3)]
    assert counts[2] - counts[1] == pytest.approx(counts[1] - counts[0], rel=1e-3)
    assert counts[0] > 0


def test_refusals(data, tmp_path):
    with pytest.raises(UserError, match="empty"):
        task(data, shards=[str(write_clips(tmp_path / "none", 0))])
    with pytest.raises(UserError, match="no such folder"):
        task(data, kl_vae=str(tmp_path / "nowhere"))
