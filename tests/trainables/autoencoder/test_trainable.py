"""The autoencoder's trainable: its samples, learning, weights folder, preview and FLOPs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AdversarialConfig, DecodingConfig, TrainingConfig
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.trainable import build_trainable
from tests.support.datasets.clip_sets import clip, write_clips
from tests.support.tiny_models import tiny_autoencoder
from tests.support.tiny_models.autoencoder_trainable import CLASSES, batch_of, build, output_of, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("autoencoder"))


def test_a_perfect_decoder_has_no_loss(data, monkeypatch):
    """The target of the prediction is the noise that was added to the target frames, in their order."""
    trainable = build(data)
    model, samples = trainable.module.autoencoder, batch_of(trainable, range(4))
    frames = samples["frames"].movedim(-1, -3).float() / 127.5 - 1
    chosen = torch.cat([frames[clip, targets] for clip, targets in enumerate(samples["targets"])])
    latents = {
        4: model.picture_latents(trainable.module.audio_image.encode(samples["waveform"])),
        8: model.picture_latents(chosen),
    }

    def solve(noisy, time, condition):
        alpha_bar = trainable.module.process.alphas_cumprod[time].view(-1, 1, 1, 1)
        return (noisy - alpha_bar.sqrt() * latents[len(noisy)]) / (1 - alpha_bar).sqrt()

    monkeypatch.setattr(model.decoder, "forward", solve)
    metrics = trainable.module(samples).metrics
    assert max(metrics["loss/audio"].max(), metrics["loss/video"].max()) < 1e-6


def test_weights_to_begin_with_that_mean_something_else_are_named(data, tmp_path):
    """Their tensors fit, so nothing else would tell; folders without the key have their features on the skips."""
    build(data).module.autoencoder.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    differences = build(data).weights_layout.differences
    assert differences(stored) == []
    del stored["model"]["decoder"]["features"]
    stored["media"] |= {"fps": 4.0, "audio": {**stored["media"]["audio"], "hop_length": 200}}
    assert differences(stored) == [
        "model.decoder.features=skips, not inside",
        "media.fps=4.0, not 10",
        "media.audio.hop_length=200, not 100",
    ]
    config = dataclasses.replace(tiny_autoencoder.CONFIG.decoder, features="skips")
    skips = build(data, model=dataclasses.replace(tiny_autoencoder.CONFIG, decoder=config)).weights_layout
    assert "skips" not in str(skips.differences(stored))


def test_the_loss_of_a_clip_depends_on_its_group_alone(data):
    """It is the same in any batch of whole groups; another seed gives other losses."""
    trainable = build(data, contrastive_batch=2)
    together = output_of(trainable, range(4))
    apart = [output_of(trainable, positions).logged() for positions in (range(2), range(2, 4))]
    for name, values in together.logged().items():
        torch.testing.assert_close(values, torch.cat([part[name] for part in apart]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together.loss, output_of(build(data, seed=1, contrastive_batch=2), range(4)).loss)


def test_samples_cover_frames_times_and_mirror_images(data):
    dataset = build(data, frames_per_clip=3).dataset
    samples = [dataset[position] for position in range(60)]
    assert {int(t) for sample in samples for t in sample["targets"]} == {0, 1, 2, 3}
    assert all(len(set(sample["targets"].tolist())) == 3 for sample in samples)
    times = np.array([sample["time"].tolist() for sample in samples])
    assert ((times >= 0) & (times < 1000)).all()
    assert all(np.histogram(times[:, i], bins=4, range=(0, 1000))[0].min() > 3 for i in range(4))
    mirrored = [sample["frames"][0, 0, 0, 0].item() < 246 for sample in samples]
    assert 15 < sum(mirrored) < 45  # the bar begins at the left
    straight = build(data, flip=0.0).dataset[0]["frames"].numpy().astype(int)
    assert min(np.abs(straight - clip(n).frames).max() for n in range(6)) < 40  # a JPEG's difference


def test_the_loss_falls_on_one_clip_and_decoded_frames_differ(data, tmp_path):
    trainable = build(
        data, shards=[str(write_clips(tmp_path / "one", 1))], flip=0.0, frames_per_clip=4, contrastive_weight=0.0
    )
    optimizer = torch.optim.Adam([p for p in trainable.module.parameters() if p.requires_grad], lr=3e-3)
    before = {name: p.clone() for name, p in trainable.module.autoencoder.kl_vae.named_parameters()}
    history = []
    for step in range(60):
        loss = output_of(trainable, range(4 * step, 4 * step + 4)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
    assert all(torch.equal(p, before[name]) for name, p in trainable.module.autoencoder.kl_vae.named_parameters())

    model = trainable.module.autoencoder
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, *model.noise_shape, generator=random).expand(-1, 4, -1, -1, -1)
    latents = torch.zeros(1, *model.audio_shape), torch.randn(1, *model.video_shape, generator=random)
    frames = model.decode(*latents, noise[:, 0], noise, DecodingConfig(steps=2))[0][0]
    assert not torch.allclose(frames[0], frames[3], atol=1e-3)


def test_the_loss_starts_lower_with_an_estimate_from_the_features(data):
    estimating = dataclasses.replace(
        tiny_autoencoder.CONFIG,
        shortcut=True,
        decoder=dataclasses.replace(tiny_autoencoder.CONFIG.decoder, estimate=True),
    )
    plain, estimated = (
        output_of(build(data, model=model), range(8)).loss.mean() for model in (tiny_autoencoder.CONFIG, estimating)
    )
    assert estimated < 0.5 * plain


def test_the_weights_folder_is_complete(data, tmp_path):
    trainable = build(data)
    trained = {name: p for name, p in trainable.module.named_parameters() if p.requires_grad}
    original = {name: p.clone() for name, p in trainable.module.autoencoder.state_dict().items()}
    original |= {f"kl_vae.{name}": p for name, p in kl_vae.load(data / "kl_vae").state_dict().items()}
    trainable.module.bfloat16()  # as an engine does; the averaged weights it hands over are float32
    trainable.write_weights(tmp_path, {name: original[name.removeprefix("autoencoder.")] for name in trained})
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.media == tiny_autoencoder.MEDIA
    assert loaded.classes == CLASSES
    assert loaded.kl_vae.config.scaling_factor == 3.0
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float32)])
def test_an_engine_neither_casts_nor_saves_the_kl_vae(data, precision, dtype):
    training = TrainingConfig(precision=precision, micro_batch=4, global_batch=4, log_every=4)
    paths = {"shards": [str(data / "clips")], "kl_vae": str(data / "kl_vae")}
    module = build_trainable(AutoencoderTraining(model=tiny_autoencoder.CONFIG, training=training, **paths)).module
    assert not any("kl_vae" in name for name in module.state_dict())
    for parameter in module.half().autoencoder.kl_vae.parameters():
        assert parameter.dtype == dtype


def test_bfloat16_agrees_with_float32(data):
    trainable = build(data)
    full = output_of(trainable, range(4))
    trainable.module.bfloat16()
    low = output_of(trainable, range(4))
    assert all(value.dtype == torch.float32 for value in low.logged().values())
    torch.testing.assert_close(low.loss, full.loss, rtol=0.02, atol=0.02)


class RecordingPreview:
    """A preview that keeps what it gets, by tag."""

    def __init__(self) -> None:
        self.shown: dict[str, object] = {}

    def image(self, tag, image):
        self.shown[tag] = image

    def video(self, tag, frames, fps):
        self.shown[tag] = torch.from_numpy(frames)

    def audio(self, tag, waveform, sample_rate):
        self.shown[tag] = waveform


def test_the_preview_shows_the_same_pictures_video_and_sound_each_time(data):
    trainable, first, second = build(data), RecordingPreview(), RecordingPreview()
    with torch.no_grad():
        trainable.preview(trainable.module, first)
        torch.rand(3)  # the global generator has no effect
        trainable.preview(trainable.module, second)
    assert first.shown["clip_0/frames_original_above_restored"].shape == (3, 2 * 32, 4 * 32)
    assert first.shown["clip_0/restored"].shape == (4, 32, 32, 3)
    assert first.shown["clip_1/sound_restored"].shape == (tiny_autoencoder.MEDIA.audio_samples,)
    assert all(torch.equal(value, second.shown[tag]) for tag, value in first.shown.items())


def test_flops_grow_with_the_target_frames_and_the_discriminator(data):
    counts = [build(data, frames_per_clip=count).flops_per_sample for count in (2, 3, 4)]
    assert counts[2] - counts[1] == pytest.approx(counts[1] - counts[0], rel=1e-3)
    assert counts[0] > build(data, adversarial=AdversarialConfig(weight=0.0)).flops_per_sample > 0


def test_an_adversarial_weight_of_0_builds_no_discriminator(data):
    without, with_discriminator = build(data, adversarial=AdversarialConfig(weight=0.0)), build(data)
    assert without.discriminator is None
    initial = with_discriminator.module.state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in without.module.state_dict().items())


def test_the_decoder_begins_from_the_weights_of_a_unet(data, tmp_path):
    """Each of the decoder's U-Nets takes all of them; its class embedding, which they lack, stays random."""
    model = dataclasses.replace(tiny_autoencoder.CONFIG, shared_decoder=False)
    published = tiny_autoencoder.build(seed=7, shared_decoder=False).decoder.unets["audio"]
    published.class_embedding = None
    published.register_to_config(class_embed_type=None, projection_class_embeddings_input_dim=None)
    published.save_pretrained(tmp_path / "unet")
    plain, initialised = build(data, model=model), build(data, model=model, unet=str(tmp_path / "unet"))
    for name in ("audio", "video"):
        initial = plain.module.autoencoder.decoder.unets[name].state_dict()
        for key, tensor in initialised.module.autoencoder.decoder.unets[name].state_dict().items():
            assert torch.equal(tensor, published.state_dict().get(key, initial[key])), key


def test_inputs_that_do_not_fit_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="empty"):
        build(data, shards=[str(write_clips(tmp_path / "none", 0))])
    with pytest.raises(UserError, match="no such f"):
        build(data, kl_vae=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such f"):
        build(data, unet=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="frames_per_clip: .* adversarial.weight=0"):
        build(data, frames_per_clip=1)
    with pytest.raises(UserError, match="contrastive_batch: 3 must"):
        build(data, contrastive_batch=3)
