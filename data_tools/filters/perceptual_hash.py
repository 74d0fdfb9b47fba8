"""A perceptual hash of a stretch: 256 bits that stay nearly the same when it is encoded, scaled or levelled again.

Four images are hashed into 64 bits each: the pictures at a sixth, a half and five sixths of the time, and the
spectrogram. A hash is the usual one of the discrete cosine transform (pHash): of the 8 × 8 slowest waves in an image
of 32 × 32, which are stronger than their median. Hashes are compared by the number of bits in which they differ.
"""

import numpy as np

from .low_res_view import LowResView
from .sound import spectrogram

SIDE = 32  # pixels of a hashed image
WAVES = 8  # a side of the block of slow waves
BYTES = 32  # of a stretch's hash
LOW, HIGH = 100.0, 3800.0  # Hz: what sound at 8 kHz has too


def perceptual_hash(view: LowResView) -> bytes:
    """Return the 32 bytes of ``view``'s hash: 24 of the picture, 8 of the sound."""
    moments = [view.pictures[len(view.pictures) * part // 6] for part in (1, 3, 5)]
    images = [_shrunk(moment) for moment in moments]
    images.append(_shrunk(spectrogram(view, LOW, HIGH, SIDE)))
    return b"".join(map(image_hash, images))


def image_hash(image: np.ndarray) -> bytes:
    """Return the 8 bytes of the hash of an image, (32, 32), in levels or dB; a flat image gives zeros."""
    waves = _TRANSFORM @ image @ _TRANSFORM.T  # (8, 8)
    flat = waves.ravel()
    flat[0] = 0.0  # brightness (loudness) is not what makes two images differ
    bits = flat > np.median(flat) + 1.0  # less than that is rounding
    return np.packbits(bits).tobytes()


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Return an (H, W) image as (32, 32) float64: means of what falls into each cell, the nearest where none does."""
    for _ in range(2):
        edges = np.arange(SIDE + 1) * len(image) / SIDE
        sums = np.concatenate([np.zeros((1, image.shape[1])), np.cumsum(image, 0, dtype=np.float64)])
        first, last = edges[:-1].astype(int), np.ceil(edges[1:]).astype(int)
        image = ((sums[last] - sums[first]) / (last - first)[:, None]).T
    return image


def _transform() -> np.ndarray:
    """Return the first 8 rows of the orthonormal discrete cosine transform (DCT-II) of length 32, (8, 32)."""
    k, n = np.arange(WAVES)[:, None], np.arange(SIDE)
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * k * (n + 0.5) / SIDE)
    rows[0] /= np.sqrt(2)
    return rows


_TRANSFORM = _transform()
