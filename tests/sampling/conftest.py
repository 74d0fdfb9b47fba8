"""A tiny model's weights, and videos to start from."""

from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.media.encode import write_video
from tests.support.tiny_models.weights_folders import TinyModel, save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_model(tmp_path_factory.mktemp("model"))


def write_input(path: Path, number: int) -> None:
    """Write a video of 1 s: a bar that moves and a tone, both of their own for each ``number``."""
    frames = np.full((10, 48, 64, 3), 20 * number, np.uint8)
    for i in range(10):
        frames[i, :, 5 * i : 5 * i + 8] = (255, 40 * number % 256, 0)
    time = np.arange(8000) / 8000
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, 10, (0.5 * np.sin(2 * np.pi * (300 + 200 * number) * time)).astype(np.float32), 8000)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three good videos among things that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(("a.mp4", "sub/b.mp4", "z.mp4")):
        write_input(folder / name, i + 1)
    (folder / "notes.txt").write_text("no video")
    (folder / "m_broken.mp4").write_bytes(b"no video either")
    write_video(folder / "n_silent.mp4", np.full((10, 32, 32, 3), 200, np.uint8), 10)
    return folder
