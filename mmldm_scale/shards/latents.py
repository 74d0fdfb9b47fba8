"""Perceptual latents as members of a WebDataset sample, and their statistics over a whole set.

``encode_latents`` and ``decode_latents`` convert. A sample has three float16 arrays of shape (2, C, H, W), mean and
log-variance of the posterior: "audio.npy", "video.npy" and "mirrored.npy" (of the horizontally flipped video). A sample
of one modality alone has only its own: the first, or the other two. The
:func:`sums` of all shards, added in shard order, give the per-channel :func:`statistics` of latents drawn from their
posteriors.
"""

import functools
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmldm_scale.common.modalities import Modality

Part = Literal["audio", "video", "mirrored"]
Posterior = tuple[np.ndarray, np.ndarray]  # mean and log-variance, shaped alike

PARTS: dict[Part, Modality] = {"audio": "audio", "video": "video", "mirrored": "video"}  # the modality of each part
_HALF = np.dtype("<f2")
_EXPONENT = np.uint16(0x7C00)  # bits of a float16 number
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, 'shape': \((2(?:, \d{1,6}){3})\), } *\n", re.DOTALL
)
Sums = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class LatentSample:
    """Posteriors of one clip, float16: audio (C, Ha, Wa), video and mirrored video (C, Hv, Wv); None: missing."""

    audio_mean: np.ndarray | None = None
    audio_logvar: np.ndarray | None = None
    video_mean: np.ndarray | None = None
    video_logvar: np.ndarray | None = None
    mirrored_mean: np.ndarray | None = None
    mirrored_logvar: np.ndarray | None = None

    @classmethod
    def of(cls, parts: Mapping[Part, Posterior]) -> "LatentSample":
        """Return the sample with these posteriors."""
        return cls(
            **{f"{part}_mean": mean for part, (mean, _) in parts.items()},
            **{f"{part}_logvar": logvar for part, (_, logvar) in parts.items()},
        )

    @property
    def parts(self) -> dict[Part, Posterior]:
        """The posteriors by part, in the order of ``PARTS``, without the missing ones."""
        pairs = {part: (getattr(self, f"{part}_mean"), getattr(self, f"{part}_logvar")) for part in PARTS}
        return {part: pair for part, pair in pairs.items() if pair[0] is not None}


def parts_of(modalities: Collection[str]) -> list[Part]:
    """Return the parts of a sample of ``modalities``."""
    return [part for part, modality in PARTS.items() if modality in modalities]


def encode_latents(sample: LatentSample) -> dict[str, bytes]:
    """Return the members of ``sample``, whose arrays may have any float type; they are stored as float16.

    Raises:
        ValueError: a value is not finite or exceeds the range of float16, ±65,504.
    """
    return {_member(part): _encode_array(_member(part), *posterior) for part, posterior in sample.parts.items()}


def decode_latents(members: Mapping[str, bytes | memoryview]) -> LatentSample:
    """Return the sample in ``members`` as read-only views; nothing is copied.

    Raises:
        ValueError: a member is missing or is not a float16 array of shape (2, C, H, W) with finite values.
    """
    arrays = {part: _decode_array(_member(part), members[_member(part)]) for part in _stored_parts(members)}
    return LatentSample.of({part: (array[0], array[1]) for part, array in arrays.items()})


def decode_latent_batch(batch: Sequence[Mapping[str, bytes | memoryview]]) -> LatentSample:
    """Return the samples in ``batch`` stacked into one with arrays (B, C, H, W), copied into new memory.

    Raises:
        ValueError: as :func:`decode_latents`, or the samples have different shapes.
    """
    arrays: dict[Part, np.ndarray] = {}
    for part in _stored_parts(batch[0]):
        name = _member(part)
        try:
            contents = [members[name] for members in batch]
        except KeyError:
            raise ValueError(f"a sample contains no latents: {name} is missing") from None
        arrays[part] = _decode_arrays(name, contents)
    return LatentSample.of({part: (array[0], array[1]) for part, array in arrays.items()})


def sums(samples: Iterable[LatentSample]) -> Sums:
    """Return the input of :func:`statistics`: float64 sums per channel; "video" includes the mirrored latents."""
    totals: Sums = {}
    for sample in samples:
        for part, posterior in sample.parts.items():
            _add(totals, PARTS[part], *posterior)
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
    with np.errstate(over="ignore"):  # the variance of a very large log-variance is infinite
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


def _member(part: Part) -> str:
    return f"{part}.npy"


def _stored_parts(members: Mapping[str, bytes | memoryview]) -> list[Part]:
    """Return the parts in ``members``; raise ValueError unless they are all those of the modalities that are there."""
    stored: list[Part] = [part for part in PARTS if _member(part) in members]
    expected = parts_of({PARTS[part] for part in stored}) or list(PARTS)
    missing = [_member(part) for part in expected if part not in stored]
    if missing:
        raise ValueError(f"contains no latents: {missing[0]} is missing; its members are {', '.join(members)}")
    return stored


def _encode_array(name: str, mean: np.ndarray, logvar: np.ndarray) -> bytes:
    exact = np.stack([mean, logvar])  # (2, C, H, W)
    with np.errstate(over="ignore"):  # checked below
        half = exact.astype(_HALF)
    if not np.isfinite(half).all():
        largest = np.abs(exact).max()  # NaN if there is one
        raise ValueError(f"{name}: largest magnitude {largest:g} cannot be stored as float16 (at most 65504)")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _decode_array(name: str, data: bytes | memoryview) -> np.ndarray:
    start = 10 + int.from_bytes(data[8:10], "little")  # a version 1.0 header: magic, version, length, text
    shape, size = _layout(bytes(data[:start]))
    if len(data) - start != size:
        raise ValueError(f"{name}: {len(data) - start} bytes of data; a float16 array of shape {shape} has {size}")
    values = np.frombuffer(data, _HALF, offset=start)
    _check_finite(name, values)
    return values.reshape(shape)  # (2, C, H, W)


def _decode_arrays(name: str, contents: list[bytes | memoryview]) -> np.ndarray:
    """Return the arrays stacked to (2, B, C, H, W); ten times as fast as calling :func:`_decode_array` for each."""
    first = contents[0]
    start = 10 + int.from_bytes(first[8:10], "little")
    shape, size = _layout(bytes(first[:start]))
    if any(len(data) != start + size for data in contents):
        raise ValueError(f"{name}: not all samples have shape {shape}")
    joined = np.frombuffer(b"".join(contents), np.uint8).reshape(len(contents), start + size)
    if (joined[:, :start] != joined[0, :start]).any():
        raise ValueError(f"{name}: not all samples are float16 arrays of shape {shape}")
    values = joined[:, start:].view(_HALF)
    _check_finite(name, values)
    return values.reshape(-1, *shape).swapaxes(0, 1)  # (2, B, C, H, W)


def _check_finite(name: str, values: np.ndarray) -> None:
    """Raise ValueError if a float16 number in ``values`` is NaN or infinite: all bits of its exponent are set."""
    if ((values.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
        raise ValueError(f"{name}: holds values that are not finite")


@functools.lru_cache(maxsize=64)  # a set has only two different headers
def _layout(header: bytes) -> tuple[tuple[int, ...], int]:
    """Return the shape in an npy header and the size of its array in bytes.

    Accepts only the header that numpy writes for float16 arrays of 4 dimensions, so nothing in it is evaluated.
    """
    match = _HEADER.fullmatch(header)
    if not match:
        raise ValueError(f"not a float16 array of shape (2, C, H, W) in npy format 1.0: {header[:100]!r}")
    shape = tuple(map(int, match[1].split(b", ")))

    return shape, math.prod(shape) * _HALF.itemsize
