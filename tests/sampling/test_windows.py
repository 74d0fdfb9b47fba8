"""Long samples: how windows are cut and joined, what each sees, and that the sound has no joint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import AudioImageConfig, DecodingConfig, MediaConfig, Sampling
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.clip import NO_FRAMES, Clip
from mmldm_scale.media.vocoder import load_vocoder
from mmldm_scale.sampling.pipeline import Pipeline
from mmldm_scale.sampling.windows import cut, join_spectrograms, sample_media, window_count
from tests.support.tiny_models.weights_folders import with_continuation

MEDIA = MediaConfig(frames=16, fps=10, size=64, audio=AudioImageConfig())  # 137.8 hops a clip
SETTINGS = Sampling(steps=2, decoding=DecodingConfig(steps=2))


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model whose clips have 4 frames, and which continues them."""
    return Pipeline.from_pretrained(with_continuation(model, tmp_path_factory.mktemp("long") / "dit").dit, SETTINGS)


def given(seconds: float, media: MediaConfig, seed: int = 0) -> Clip:
    random, whole = np.random.default_rng(seed), sample_media(media, seconds)
    frames = random.integers(0, 256, (whole.frames, media.size, media.size, 3), np.uint8)
    return Clip(frames, 0.1 * random.standard_normal(whole.audio_samples).astype(np.float32))


def test_the_length_of_samples():
    assert sample_media(MEDIA, None) is MEDIA
    whole = sample_media(MEDIA, 16)
    assert (whole.frames, whole.audio_samples, window_count(MEDIA, whole)) == (160, 16 * 22050, 10)
    assert window_count(MEDIA, sample_media(MEDIA, 16.1)) == 11
    for seconds in (1.5, 601, float("nan"), -1.0):
        with pytest.raises(UserError, match=f"^--seconds {seconds:g}: must be from 1.6, the length of the model's"):
            sample_media(MEDIA, seconds)


def test_a_given_clip_is_cut_into_windows_and_its_end_is_padded():
    clip = given(4.0, MEDIA)
    parts = cut(clip, MEDIA, 3)
    assert {(part.frames.shape, part.waveform.shape) for part in parts} == {((16, 64, 64, 3), (35280,))}
    assert np.array_equal(np.concatenate([part.frames for part in parts])[:40], clip.frames)
    assert np.array_equal(np.concatenate([part.waveform for part in parts])[: len(clip.waveform)], clip.waveform)
    assert np.array_equal(parts[2].frames[8:], np.repeat(clip.frames[-1:], 8, 0))
    assert not parts[2].waveform[len(clip.waveform) - 2 * 35280 :].any()


@pytest.mark.parametrize("hop", [256, 252])  # 137.8 and exactly 140 frames a clip
def test_joined_spectrograms_are_those_of_the_joined_sound(hop):
    media = replace(MEDIA, audio=replace(MEDIA.audio, hop_length=hop))
    whole = sample_media(media, 8.0)
    time = np.arange(whole.audio_samples) / 22050
    sweep = (0.3 * np.sin(2 * np.pi * (300 * time + 40 * time**2)) + 0.02 * np.sin(2 * np.pi * 5000 * time)).astype(
        "f4"
    )
    image = AudioImage(media)
    windows = [image.decibels(torch.from_numpy(part.waveform)[None]) for part in cut(Clip(NO_FRAMES, sweep), media, 5)]
    joined, direct = join_spectrograms(windows, media, whole), image.decibels(torch.from_numpy(sweep)[None])
    assert joined.shape == direct.shape == (1, 80, whole.mel_frames)
    off = (joined - direct).abs().mean(dim=(0, 1))  # (T,), dB; 39 at the joints without the limit there
    assert off.max() < (1 if hop == 252 else 3.5)
    assert join_spectrograms(windows[:1], media, media) is windows[0]


def test_the_sound_of_a_long_sample_does_not_click_where_windows_meet():
    """Vocoded in one go, a steady tone stays one; vocoded window by window, its phase jumps."""
    media = replace(MEDIA, audio=replace(MEDIA.audio, hop_length=252))
    whole = sample_media(media, 3.2)
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(whole.audio_samples) / 22050)).astype(np.float32)
    image = AudioImage(media)
    windows = [image.decibels(torch.from_numpy(part.waveform)[None]) for part in cut(Clip(NO_FRAMES, tone), media, 2)]
    vocoder = load_vocoder(None, media.audio)
    joined = vocoder(join_spectrograms(windows, media, whole), whole.audio_samples)[0].numpy()
    apart = np.concatenate([vocoder(window, media.audio_samples)[0].numpy() for window in windows])
    assert joined.shape == apart.shape == (70560,)
    assert click(joined) < -55
    assert click(apart) > -40


def click(sound: np.ndarray) -> float:
    """Return the level above 2 kHz within 23 ms of the middle of ``sound``, in dB of the whole level there."""
    spectrum = torch.stft(torch.from_numpy(sound), 512, 128, window=torch.hann_window(512), return_complex=True)
    power = spectrum.abs().square().numpy()  # (257, T)
    middle = power[:, power.shape[1] // 2 - 4 : power.shape[1] // 2 + 5]
    return float(10 * np.log10((middle[46:].sum(0) / middle.sum(0)).max()))


def test_a_long_sample_begins_with_the_short_one_and_each_window_sees_the_one_before(pipeline):
    short = pipeline.latents("svg", [3])
    windows = pipeline.windows("svg", [3], seconds=1.0)
    assert len(windows) == 3
    assert torch.equal(windows[0].video, short.video)
    again = pipeline.latents("svg", [3], previous=windows[1], window=2)
    assert torch.equal(again.audio, windows[2].audio)
    other = pipeline.latents("svg", [3], previous=windows[0], window=2)
    assert not torch.allclose(other.audio, windows[2].audio)
    noise = pipeline.latents("svg", [3], previous=windows[1], window=1)
    assert not torch.allclose(noise.audio, windows[2].audio)
    clip = pipeline.generate("svg", [3], seconds=1.0)[0]
    assert clip.frames.shape == (10, 32, 32, 3)
    assert clip.waveform.shape == (8000,)
    assert np.array_equal(clip.frames[:4], pipeline.decode("svg", [3], short)[0].frames)


def test_what_is_given_is_kept_in_a_long_sample_and_steers_each_window(pipeline):
    one, other = given(1.0, pipeline.media), given(1.0, pipeline.media, 1)
    changed = replace(one, waveform=np.concatenate([one.waveform[:3200], other.waveform[3200:]]))
    made, differing = (pipeline.generate("a2v", [0], [clip], seconds=1.0)[0] for clip in (one, changed))
    assert np.array_equal(made.waveform, one.waveform)
    assert np.array_equal(made.frames[:4], differing.frames[:4])
    assert not np.array_equal(made.frames[4:8], differing.frames[4:8])
    shown = pipeline.generate("v2a", [0], [one], seconds=1.0)[0]
    assert np.array_equal(shown.frames, one.frames)
    assert shown.waveform.shape == (8000,)


def test_a_continuation_sees_those_modalities_of_its_input_that_its_task_names(pipeline):
    one, other = given(0.4, pipeline.media), given(0.4, pipeline.media, 1)
    for task, sees_sound, sees_picture in (
        ("joint_continuation", True, True),
        ("audio_continuation", True, False),
        ("video_continuation", False, True),
    ):
        made, sound, picture = (
            pipeline.latents(task, [0], [clip]).video
            for clip in (one, replace(one, waveform=other.waveform), replace(one, frames=other.frames))
        )
        assert torch.equal(made, sound) != sees_sound, task
        assert torch.equal(made, picture) != sees_picture, task
        with pytest.raises(ValueError, match="needs one input for each sample"):
            pipeline.latents(task, [0])


def test_one_modality_of_the_joint_model(pipeline):
    """Both are denoised, one is decoded."""
    sound, picture = (pipeline.generate(task, [1])[0] for task in ("audio", "video"))
    assert (sound.frames.size, picture.waveform.size) == (0, 0)
    assert sound.waveform.shape == (3200,)
    assert picture.frames.shape == (4, 32, 32, 3)
    whole = pipeline.decode("svg", [1], pipeline.latents("video", [1]))[0]
    assert whole.frames.shape == picture.frames.shape


def test_a_model_that_continues_nothing_makes_no_long_samples(model: Path):
    short = Pipeline.from_pretrained(model.dit, SETTINGS)
    with pytest.raises(UserError, match=r"^--seconds 1: the model in .* has model.continuation=false and makes clips"):
        short.generate("svg", [0], seconds=1.0)
    assert short.generate("svg", [0], seconds=0.4)[0].frames.shape == (4, 32, 32, 3)
    with pytest.raises(UserError, match="^task joint_continuation: .*; must be one of svg, a2v, v2a, audio, video$"):
        short.generate("joint_continuation", [0], [given(0.4, model.media)])
