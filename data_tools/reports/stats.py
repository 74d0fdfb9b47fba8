"""What a finished shard set holds, in numbers: labels, splits, sizes, loudness, drops, and how float16 suits latents.

``stats(folder)`` counts, ``stats(folder, output)`` also writes ``stats.json`` and the contact sheet into ``output``,
and :func:`describe` returns it as a few lines of text. Of clips only the "json" members are read, so that a set of
100,000 takes seconds; latents are read whole, each behind its checksum.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality
from mmldm_scale.models.autoencoder.gaussian import LOGVAR_RANGE
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.latents import PARTS, decode_latents, parts_of
from mmldm_scale.shards.manifest import Kind, Manifest
from mmldm_scale.shards.reader import ShardSet

from ..launching.progress import Progress
from ..sources.video import BY_NAME
from . import contact_sheet

META_LIMIT = 1 << 20  # bytes of a "json" member
HALF_NORMAL = float(np.finfo(np.float16).smallest_normal)  # below it float16 loses digits
HALF_STEP = 2.0**-11  # largest relative rounding error of a normal float16
LEVEL_STEP = 3.0  # dB of one bar of the loudness histogram
LEVEL_RANGE = (-120.0, 12.0)  # dB; what lies beyond counts in the outermost bars
SHOWN = 12  # labels, reasons and splits listed by name


@dataclass(frozen=True)
class Spread:
    """How some numbers are spread: smallest, median and largest."""

    smallest: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: np.ndarray | list[float]) -> "Spread":
        """Return the spread of ``values`` (n,); all zero if there are none."""
        if not len(values):
            return cls(0.0, 0.0, 0.0)
        return cls(float(np.min(values)), float(np.median(values)), float(np.max(values)))


@dataclass(frozen=True)
class Levels:
    """RMS levels of the samples in dB relative to full scale.

    Attributes:
        spread: of all samples that are not digitally silent.
        start: of the first bar, dB; every bar is ``LEVEL_STEP`` wide.
        counts: samples in each bar.
        unknown: samples without a level: digital silence, or a set that keeps none.
    """

    spread: Spread
    start: float
    counts: list[int]
    unknown: int

    @classmethod
    def of(cls, levels: list[float], unknown: int) -> "Levels":
        """Return the distribution of ``levels`` in dB."""
        if not levels:
            return cls(Spread.of([]), 0.0, [], unknown)
        bars = np.floor(np.clip(levels, *LEVEL_RANGE) / LEVEL_STEP).astype(np.int64)
        return cls(Spread.of(levels), float(bars.min() * LEVEL_STEP), np.bincount(bars - bars.min()).tolist(), unknown)


@dataclass(frozen=True)
class LatentStats:
    """One modality's latents: the scale that training divides by, and what float16 does to them.

    Attributes:
        shape: (C, H, W).
        mean, std: per channel, of the latents as they are drawn; from the manifest.
        largest: the largest magnitude of a mean; float16 ends at 65,504.
        logvar: spread of the log-variances (of the samples' means for the median).
        clamped_low, clamped_high: shares of log-variances at the two ends of the autoencoder's range.
        subnormal: share of means other than 0 below float16's normal range (6.1e-5), where digits are lost.
        rounding: the largest error that rounding a mean to float16 can have made, in units of its channel's std.
    """

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    largest: float
    logvar: Spread
    clamped_low: float
    clamped_high: float
    subnormal: float
    rounding: float


@dataclass(frozen=True)
class Stats:
    """What a set holds; ``samples + dropped == candidates + failed_files``, as in its manifest.

    Attributes:
        seconds: of sound and picture over all samples, overlaps of windows counted each time.
        reasons: dropped candidates by reason, most frequent first.
        labels: samples by label, most frequent first; a sample with several counts for each, "" stands for none.
        splits: samples by split, "" for none.
        origins: recordings that the samples were cut from.
        bytes: of all tars; ``shard_bytes`` and ``shard_samples`` are their spread over the shards.
        levels: loudness.
        latents: by modality ("audio", "video"); empty for clips.
    """

    kind: Kind
    videos: int
    failed_files: int
    candidates: int
    samples: int
    dropped: int
    seconds: float
    reasons: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, int]
    origins: int
    shards: int
    bytes: int
    shard_bytes: Spread
    shard_samples: Spread
    levels: Levels
    latents: dict[str, LatentStats]


def stats(folder: Path, output: Path | None = None, samples: int = 24) -> Stats:
    """Count what the finished set in ``folder`` holds.

    Args:
        output: where ``stats.json``, ``index.html`` and ``contact.jpg`` go; made if missing, other files in it stay.
        samples: how many samples the contact sheet shows, spread evenly over the recordings.

    Raises:
        UserError: the folder holds no finished set or a damaged one (DamagedSet); ``output`` is a file or a shard set.
    """
    if output is not None:
        contact_sheet.check_output(output)
    shards = ShardSet(folder)
    manifest = shards.manifest
    if manifest.kind == "samples":
        raise UserError(f"{folder}: contains samples of a model, which their gallery shows; give clips or latents")
    tally = _Tally()
    with Progress(len(shards), "counting", "samples") as bar:
        for meta in _metas(shards):
            tally.add(meta)
            bar.update()
    totals = Stats(
        **{name: getattr(manifest, name) for name in ("kind", "videos", "failed_files", "candidates", "dropped")},
        samples=len(shards),
        seconds=len(shards) * manifest.media.seconds,
        reasons=dict(Counter(manifest.reasons).most_common()),
        labels=_ranked(tally.labels),
        splits=_ranked(tally.splits),
        origins=len(set(tally.origins)),
        shards=len(manifest.shards),
        bytes=sum(entry.bytes for entry in manifest.shards),
        shard_bytes=Spread.of([entry.bytes for entry in manifest.shards]),
        shard_samples=Spread.of([entry.samples for entry in manifest.shards]),
        levels=Levels.of(tally.levels, tally.unknown),
        latents=_latents(shards) if manifest.kind == "latents" and len(shards) else {},
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        value = json.dumps(dataclasses.asdict(totals), indent=1, allow_nan=False)
        write_whole(output / "stats.json", value.encode("ascii") + b"\n")
        chosen = contact_sheet.spread(tally.origins, samples)
        contact_sheet.write(shards, output, chosen, describe(totals), _charts(totals))
    return totals


def describe(totals: Stats) -> str:
    """Return ``totals`` as a few lines of text."""
    reasons, others = _without_others(totals.reasons)
    drops = f" ({_counts(reasons)})" if reasons else ""
    lines = [
        f"{totals.samples:,} {totals.kind} ({totals.seconds / 3600:,.2f} h) from {totals.origins:,} recordings",
        f"{totals.videos:,} entries: {totals.videos - totals.failed_files:,} with {totals.candidates:,} candidates + "
        f"{totals.failed_files:,} without; {totals.samples:,} samples + {totals.dropped - others:,} dropped{drops}"
        + (f" + {others:,} other files" if others else ""),
        f"{totals.shards:,} shards, {totals.bytes / 1e6:,.1f} MB: {_spread(totals.shard_samples, '{:,.0f}')} samples, "
        f"{_spread(totals.shard_bytes, '{:,.0f}')} bytes each",
        f"labels: {_counts(totals.labels)}",
        f"splits: {_counts(totals.splits)}",
    ]
    if totals.levels.counts:
        unknown = f"; {totals.levels.unknown:,} without" if totals.levels.unknown else ""
        lines.append(f"RMS level: {_spread(totals.levels.spread, '{:.1f}')} dB{unknown}")
    for modality, part in totals.latents.items():
        lines += [
            f"{modality} latents {'×'.join(map(str, part.shape))}: channel mean {_range(part.mean)}, "
            f"std {_range(part.std)}",
            f"  float16: largest magnitude {part.largest:.4g}, rounding at most {part.rounding:.1e} of a channel's "
            f"std, {part.subnormal:.2%} subnormal",
            f"  log-variance {_spread(part.logvar, '{:.2f}')}; at the clamp: {part.clamped_low:.2%} low, "
            f"{part.clamped_high:.2%} high",
        ]
    return "\n".join(lines)


class _Tally:
    """Counts over the samples' meta."""

    def __init__(self) -> None:
        self.labels: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.origins: list[str] = []  # of each sample
        self.levels: list[float] = []
        self.unknown = 0

    def add(self, meta: dict[str, Any]) -> None:
        """Count one sample."""
        labels = meta.get("labels") or [meta.get("label") or ""]
        self.labels.update({str(label) for label in labels})
        self.splits[str(meta.get("split") or "")] += 1
        self.origins.append(str(meta.get("origin") or meta.get("path") or ""))
        level = meta.get("rms_db")
        if isinstance(level, int | float) and np.isfinite(level):
            self.levels.append(float(level))
        else:
            self.unknown += 1


def _metas(shards: ShardSet) -> Iterator[dict[str, Any]]:
    """Yield the "json" member of every sample, and of nothing else; their shards are read in order."""
    for number, entry in enumerate(shards.manifest.shards):
        index = ShardIndex.read(shards.folder, number)
        if not len(index):
            continue
        column = index.members.index("json")
        with (shards.folder / f"{entry.name}.tar").open("rb") as tar:
            places = zip(index.keys, index.offsets[:, column].tolist(), index.sizes[:, column].tolist(), strict=True)
            for key, offset, size in places:
                tar.seek(offset)
                yield _parse(tar.read(min(size, META_LIMIT)), f"{shards.folder}: sample {key} in {entry.name}")


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedSet(f"{where}: its json member is none: {error}") from None
    if not isinstance(meta, dict):
        raise DamagedSet(f"{where}: its json member is no object")
    return meta


def _latents(shards: ShardSet) -> dict[str, LatentStats]:
    """Return the statistics of every modality; every sample is read and its checksum looked at."""
    measures = {modality: _Float16(shards.manifest, modality) for modality in shards.manifest.shapes}
    with Progress(len(shards), "reading latents", "samples") as bar:
        for number in range(len(shards)):
            sample = contact_sheet.decoded(shards, number, lambda raw: decode_latents(raw.members))
            if list(sample.parts) != parts_of(measures):
                where = f"{shards.folder}: sample {shards.key(number)}"
                raise DamagedSet(f"{where}: has latents of {', '.join(sample.parts)} alone; run verify")
            for part, posterior in sample.parts.items():
                measures[PARTS[part]].add(*posterior)
            bar.update()
    return {name: measure.result() for name, measure in measures.items()}


class _Float16:
    """What float16 does to one modality, added up sample by sample."""

    def __init__(self, manifest: Manifest, modality: Modality) -> None:
        self._shape = manifest.shapes[modality]
        self._statistics = manifest.statistics[modality]
        self._largest = np.zeros(self._shape[0])  # (C,)
        self._logvars: list[tuple[float, float, float]] = []  # smallest, mean, largest of each sample
        self._low = self._high = self._subnormal = self._count = 0

    def add(self, mean: np.ndarray, logvar: np.ndarray) -> None:
        """Count one posterior: two float16 arrays (C, H, W)."""
        if mean.shape != self._shape:
            raise DamagedSet(f"holds latents of shape {mean.shape}, where its manifest says {self._shape}; run verify")
        size, spread = np.abs(mean), logvar.astype(np.float32)
        self._largest = np.maximum(self._largest, size.max((1, 2)))
        self._logvars.append((float(spread.min()), float(spread.mean()), float(spread.max())))
        low, high = LOGVAR_RANGE
        self._low += int((spread <= low).sum())
        self._high += int((spread >= high).sum())
        self._subnormal += int(((size > 0) & (size < HALF_NORMAL)).sum())
        self._count += mean.size

    def result(self) -> LatentStats:
        """Return the statistics of all posteriors that were added."""
        smallest, means, largest = np.array(self._logvars).T
        std = np.array(self._statistics["std"])
        rounding = np.divide(self._largest * HALF_STEP, std, out=np.zeros_like(std), where=std > 0)
        return LatentStats(
            shape=self._shape,
            mean=self._statistics["mean"],
            std=self._statistics["std"],
            largest=float(self._largest.max()),
            logvar=Spread(float(smallest.min()), float(np.median(means)), float(largest.max())),
            clamped_low=self._low / self._count,
            clamped_high=self._high / self._count,
            subnormal=self._subnormal / self._count,
            rounding=float(rounding.max()),
        )


def _charts(totals: Stats) -> dict[str, dict[str, int]]:
    """Return the counts that the contact sheet draws as bars, by title."""
    levels = {f"{totals.levels.start + i * LEVEL_STEP:g} dB": count for i, count in enumerate(totals.levels.counts)}
    charts = {"Labels": _named(totals.labels), "Splits": _named(totals.splits)}
    charts |= {
        "Dropped, by reason": _named(_without_others(totals.reasons)[0]),
        f"RMS level, {LEVEL_STEP:g} dB a bar": levels,
    }
    return {title: counts for title, counts in charts.items() if counts}


def _without_others(reasons: dict[str, int]) -> tuple[dict[str, int], int]:
    """Return ``reasons`` without those of files whose name says that they are no videos, and how many these are."""
    others = sum(reasons.get(reason, 0) for reason in BY_NAME)
    return {reason: count for reason, count in reasons.items() if reason not in BY_NAME}, others


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """Return ``counts``, the highest first, equal ones by name: the same for the same set."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _named(counts: dict[str, int]) -> dict[str, int]:
    """Return the first of ``counts``, the others summed up in one, the empty name spelt out."""
    names = list(counts)
    shown = {name or "(none)": counts[name] for name in names[:SHOWN]}
    rest = names[SHOWN:]
    return shown | ({f"({len(rest):,} others)": sum(counts[name] for name in rest)} if rest else {})


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in _named(counts).items()) or "none"


def _spread(spread: Spread, form: str) -> str:
    parts = [form.format(value) for value in dataclasses.astuple(spread)]
    return parts[0] if len(set(parts)) == 1 else f"{parts[0]} … {parts[1]} … {parts[2]}"


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} … {max(values):.3g}"
