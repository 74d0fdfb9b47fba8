"""Copies have nearly the same hash, other scenes another one."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from data_tools.demo.corpus import make_corpus
from data_tools.filters.low_res_view import low_res_view
from data_tools.filters.perceptual_hash import BYTES, image_hash, perceptual_hash
from mmldm_scale.media.decode import probe


def hash_of(file: Path) -> bytes:
    info = probe(file)
    return perceptual_hash(low_res_view(file, 0.0, info.seconds, info.sample_rate))


def differing(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def recode(source: Path, target: Path, size: int) -> None:
    """Encode ``source`` again at ``size`` × ``size`` pixels, strongly compressed, as other codecs."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        pictures = new.add_stream("mpeg4", rate=20, width=size, height=size, pix_fmt="yuv420p", bit_rate=300_000)
        sound = new.add_stream("aac", rate=44100, bit_rate=48_000)
        for frame in old.decode(video=0):
            small = frame.reformat(size, size, "yuv420p")
            small.pict_type = 0
            new.mux(pictures.encode(small))
        old.seek(0)
        for frame in old.decode(audio=0):
            new.mux(sound.encode(frame))
        new.mux(pictures.encode(None))
        new.mux(sound.encode(None))


def test_copies_are_near_and_others_far(tmp_path):
    files = make_corpus(tmp_path / "corpus", videos=4, seconds=3.0)
    hashes = [hash_of(file) for file in files]
    assert {len(value) for value in hashes} == {BYTES}
    for file, value in zip(files, hashes, strict=True):
        recode(file, tmp_path / "copy.mp4", 96)
        assert differing(value, hash_of(tmp_path / "copy.mp4")) <= 20
    assert min(differing(one, other) for one, other in itertools.combinations(hashes, 2)) > 40


def test_a_hash_of_an_image_is_that_of_its_slow_waves():
    """Against the transform written out as a double sum."""
    image = np.random.default_rng(0).uniform(0, 255, (32, 32))
    n = np.arange(32)
    waves = np.array(
        [
            [
                (image * np.outer(np.cos(np.pi * a * (n + 0.5) / 32), np.cos(np.pi * b * (n + 0.5) / 32))).sum()
                / 16 / (1 if a else 2**0.5) / (1 if b else 2**0.5)
                for b in range(8)
            ]
            for a in range(8)
        ]
    )  # fmt: skip
    waves[0, 0] = 0
    bits = "".join(str(int(wave > np.median(waves) + 1)) for wave in waves.ravel())
    assert image_hash(image) == int(bits, 2).to_bytes(8)


@pytest.mark.parametrize("change", [lambda image: image + 20, lambda image: image * 0.8])
def test_brightness_and_contrast_hardly_count(change):
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    image = 100 + 40 * np.sin(x / 3) * np.cos(y / 5) + 30 * np.sin(x * y / 60)
    assert differing(image_hash(image), image_hash(change(image))) <= 2


def test_a_flat_image_is_zero():
    assert image_hash(np.full((32, 32), 77.0)) == bytes(8)
