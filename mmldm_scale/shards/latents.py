"""Perceptual latents as members of a WebDataset sample, and their statistics over a whole set.

A sample has three float16 arrays of shape (2, C, H, W), mean and log-variance of the posterior: "audio.npy",
"video.npy" and "mirrored.npy" (of the video flipped left to right). :func:`sums` of each shard, added up in shard
order, give the per-channel :func:`statistics` of the latents as they will be drawn from their posteriors.
"""

import functools
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AUDIO, VIDEO, MIRRORED = "audio.npy", "video.npy", "mirrored.npy"
_HALF = np.dtype("<f2")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, 'shape': \((2(?:, \d{1,6}){3})\), } *\n", re.DOTALL
)
Sums = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class LatentSample:
    """Posteriors of one clip, float16: audio (C, Ha, Wa), video and mirrored video (C, Hv, Wv)."""

    audio_mean: np.ndarray
    audio_logvar: np.ndarray
    video_mean: np.ndarray
    video_logvar: np.ndarray
    mirrored_mean: np.ndarray
    mirrored_logvar: np.ndarray


def encode_latents(sample: LatentSample) -> dict[str, bytes]:
    """Return the members that hold ``sample`` (arrays of any float type, kept as float16).

    Raises:
        ValueError: a value is not finite, or overflows float16 (beyond ±65,504).
    """
    return {
        AUDIO: _encode_array(AUDIO, sample.audio_mean, sample.audio_logvar),
        VIDEO: _encode_array(VIDEO, sample.video_mean, sample.video_logvar),
        MIRRORED: _encode_array(MIRRORED, sample.mirrored_mean, sample.mirrored_logvar),
    }


def decode_latents(members: Mapping[str, bytes | memoryview]) -> LatentSample:
    """Return the sample that ``members`` hold, as read-only views of them (nothing is copied).

    Raises:
        ValueError: a member is missing or is no float16 array of shape (2, C, H, W).
    """
    arrays = []
    for name in (AUDIO, VIDEO, MIRRORED):
        if name not in members:
            raise ValueError(f"holds no latents, but {', '.join(members)}")
        arrays += [*_decode_array(name, members[name])]
    return LatentSample(*arrays)


def decode_latent_batch(batch: Sequence[Mapping[str, bytes | memoryview]]) -> LatentSample:
    """Return the samples that the members in ``batch`` hold as one, its arrays (B, C, H, W), copied into new memory.

    Raises:
        ValueError: as :func:`decode_latents`; or they are not all of one shape.
    """
    arrays = []
    for name in (AUDIO, VIDEO, MIRRORED):
        try:
            contents = [members[name] for members in batch]
        except KeyError:
            raise ValueError(f"a sample without {name} holds no latents") from None
        arrays += [*_decode_arrays(name, contents)]
    return LatentSample(*arrays)


def sums(samples: Iterable[LatentSample]) -> Sums:
    """Return what :func:`statistics` needs of ``samples``: float64 sums per channel; video counts both orientations."""
    totals: Sums = {}
    for sample in samples:
        _add(totals, "audio", sample.audio_mean, sample.audio_logvar)
        _add(totals, "video", sample.video_mean, sample.video_logvar)
        _add(totals, "video", sample.mirrored_mean, sample.mirrored_logvar)
    return {
        modality: {name: np.asarray(value).tolist() for name, value in total.items()}
        for modality, total in totals.items()
    }


def statistics(shards: Iterable[Sums]) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation per channel of the latents as drawn: var(mean) + E[exp(logvar)].

    Args:
        shards: the :func:`sums` of every shard, in shard order.
    """
    totals: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for modality, part in shard.items():
            total = totals.setdefault(modality, dict.fromkeys(part, 0))
            for name, value in part.items():
                total[name] = total[name] + np.asarray(value)
    return {modality: _moments(total) for modality, total in totals.items()}


def _moments(total: dict[str, Any]) -> dict[str, list[float]]:
    mean = total["mean"] / total["count"]
    variance = np.maximum(total["mean_square"] / total["count"] - mean**2, 0) + total["variance"] / total["count"]
    return {"mean": mean.tolist(), "std": np.sqrt(variance).tolist()}


def _add(totals: Sums, modality: str, mean: np.ndarray, logvar: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # infinite is what such a log-variance means
        mean, variance = mean.astype(np.float64), np.exp(logvar.astype(np.float64))
    part = {
        "count": mean[0].size,
        "mean": mean.sum((1, 2)),  # (C,)
        "mean_square": (mean**2).sum((1, 2)),
        "variance": variance.sum((1, 2)),
    }
    total = totals.setdefault(modality, dict.fromkeys(part, 0))
    for name, value in part.items():
        total[name] = total[name] + value


def _encode_array(name: str, mean: np.ndarray, logvar: np.ndarray) -> bytes:
    exact = np.stack([mean, logvar])  # (2, C, H, W)
    with np.errstate(over="ignore"):  # found out below
        half = exact.astype(_HALF)
    if not np.isfinite(half).all():
        largest = np.abs(exact).max()  # NaN if there is one
        raise ValueError(f"{name}: holds values that float16 cannot: largest magnitude {largest:g}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decode_array(name: str, data: bytes | memoryview) -> np.ndarray:
    start = 10 + int.from_bytes(data[8:10], "little")  # a version 1.0 header: magic, version, length, text
    shape, size = _layout(bytes(data[:start]))
    if len(data) - start != size:
        raise ValueError(f"{name}: {len(data) - start} bytes do not hold a float16 array of shape {shape}")
    return np.frombuffer(data, _HALF, offset=start).reshape(shape)  # (2, C, H, W)


def _decode_arrays(name: str, contents: list[bytes | memoryview]) -> np.ndarray:
    """Return what as many calls of :func:`_decode_array` would, stacked to (2, B, C, H, W), in a tenth of the time."""
    first = contents[0]
    start = 10 + int.from_bytes(first[8:10], "little")
    shape, size = _layout(bytes(first[:start]))
    if any(len(data) != start + size for data in contents):
        raise ValueError(f"{name}: the samples are not all of shape {shape}")
    joined = np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), start + size)
    if (joined[:, :start] != joined[0, :start]).any():
        raise ValueError(f"{name}: the samples are not all float16 arrays of shape {shape}")
    return joined[:, start:].view(_HALF).reshape(-1, *shape).swapaxes(0, 1)  # (2, B, C, H, W)


@functools.lru_cache(maxsize=64)  # all samples of a set share two headers
def _layout(header: bytes) -> tuple[tuple[int, ...], int]:
    """Return the shape that an npy header states, and the bytes that its array takes.

    Only the header that numpy writes for our arrays fits, so nothing in it needs evaluating.
    """
    stated = _HEADER.fullmatch(header)
    if not stated:
        raise ValueError(f"no float16 array of shape (2, C, H, W) in npy format 1.0, but {header[:100]!r}")
    shape = tuple(map(int, stated[1].split(b", ")))
    return shape, math.prod(shape) * _HALF.itemsize
