"""A folder of videos, good and bad, and a configuration small enough to cut it in a moment."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.media.encode import write_video

OVERRIDES = (
    "media.frames=4",
    "media.size=16",
    "media.audio.n_mels=16",
    "media.audio.sample_rate=8000",
    "media.audio.f_max=4000",
    "stride=2",
    "samples_per_shard=4",
)


def video(path: Path, seconds: float = 1.2, sound: float | None = 0.3, seed: int = 0) -> None:
    """Write a small video at 10 fps; colours and pitch follow ``seed``, ``sound`` is its amplitude (None: no track)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = round(seconds * 10)
    x = np.arange(32)
    ramps = [4 * x + 8 * i + 40 * seed for i in range(count)]
    frames = np.stack([np.broadcast_to(np.stack([r, r[::-1], r * 0 + 99], -1), (32, 32, 3)) for r in ramps])
    waveform = None
    if sound is not None:
        time = np.arange(round(seconds * 8000)) / 8000
        waveform = (sound * np.sin(2 * np.pi * (300 + 50 * seed) * time)).astype(np.float32)
    write_video(path, (frames % 256).astype(np.uint8), 10, waveform, None if waveform is None else 8000)


@pytest.fixture
def make_video() -> Callable[..., None]:
    return video


@pytest.fixture
def overrides() -> list[str]:
    return list(OVERRIDES)


@pytest.fixture(scope="session")
def good_videos(tmp_path_factory) -> Path:
    """Three good videos of two classes: 5 windows each."""
    folder = tmp_path_factory.mktemp("good")
    for seed, name in enumerate(["cat/a.mp4", "cat/b.mp4", "dog/a.mp4"]):
        video(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="session")
def mixed_videos(tmp_path_factory) -> Path:
    """Good and bad files together; only "good…" ones and one half of "half_silent" give clips."""
    folder = tmp_path_factory.mktemp("mixed")
    video(folder / "good 'single' \"double\".mp4", seed=1)
    video(folder / "good" / "ünïcödé 视频.MP4", seed=2)
    video(folder / "bad" / "silent.mp4", sound=0.0)
    video(folder / "bad" / "no_sound.mp4", sound=None)
    video(folder / "bad" / "short.mp4", seconds=0.2)
    (folder / "bad" / "text.mp4").write_text("I am a text.\n" * 99)
    (folder / "bad" / "zero.mp4").touch()
    (folder / "bad" / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    whole = (folder / "good" / "ünïcödé 视频.MP4").read_bytes()
    (folder / "bad" / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "readme.txt").write_text("not a video, and not meant to be one")
    return folder
