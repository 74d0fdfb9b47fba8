"""Validation of the synthetic benchmark's detectors on the truth of the procedural corpus.

    python -m benchmarks.synthetic_detectors --output benchmarks/results/synthetic_detectors.json

It makes a corpus, cuts clips of 1.6 s as models see them (16 frames of 64² at 10 frames/s, sound at 16 kHz), and prints
two tables: what the detectors find against the truth, and the benchmark's numbers of the same clips as they are, with
the sound shifted, with shuffled sounds, and with noise.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.report import machine, publish
from data_tools.demo.corpus import make_corpus
from mmldm_scale.common.rng import generator
from mmldm_scale.config import AudioImageConfig, MediaConfig
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.synthetic.agreement import TOLERANCE
from mmldm_scale.evaluation.synthetic.benchmark import benchmark_row, shuffle_sounds, table
from mmldm_scale.evaluation.synthetic.picture import APART, picture_class, picture_hits
from mmldm_scale.evaluation.synthetic.sound import WINDOW, sound_class, sound_hits
from mmldm_scale.media.clip import Clip, MediaError
from mmldm_scale.media.decode import probe, read_clips

SECONDS, SAMPLE_RATE = 1.6, 16000  # of a clip; Hz
FIRST = 0.4  # seconds: start of the first clip of a video, so that there is sound before it for a shift
SHIFTS = (0, 40, 100, 200, -40, -100, -200)  # ms by which the sound comes late
CLASSES = ("ball", "bell", "blocks", "rain")
PICTURE_NOISE, SOUND_NOISE = 10.0, 0.01  # standard deviations: levels of 255, of full scale


def main() -> int:
    """Make a corpus, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=160, help="of 4 s, two clips each (default %(default)s)")
    parser.add_argument("--seed", type=int, default=11, help="of the corpus (default %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = make_corpus(Path(folder), videos=args.videos, seconds=4.0, seed=args.seed, progress=True)
        clips = {shift: corpus_clips(videos, shift) for shift in SHIFTS}
    found = {kind: against_truth([clip for clip in clips[0] if clip.info["class"] == kind]) for kind in CLASSES}
    rows = [benchmark_row(f"sound {shift:+d} ms" if shift else "as they are", clips[shift]) for shift in SHIFTS]
    rows.append(benchmark_row("sounds shuffled", shuffle_sounds(clips[0], args.seed)))
    rows += [benchmark_row(f"noise in {where}", with_noise(clips[0], where)) for where in ("pictures", "sound")]
    print(truth_table(found), "\n\n", table(rows), "\n", sep="", file=sys.stderr)
    results = {"videos": args.videos, "seed": args.seed, "clips": len(clips[0])}
    detectors = {kind: detector.summary() for kind, detector in found.items()}
    numbers = {row.title: row.values for row in rows}
    publish({"machine": machine("numpy", "av"), **results, "detectors": detectors, "benchmark": numbers}, args.output)
    return 0


def corpus_clips(videos: Sequence[Path], shift: int = 0, frame_rate: float = 10.0, size: int = 64) -> list[ClipRecord]:
    """Return the clips of ``videos``, of ``make_corpus``, with the sound ``shift`` ms late; -400 to 400.

    ``info`` has "class" and "hits", the truth: times in seconds from the clip's start, of the unshifted sound.
    """
    records = []
    for path in videos:
        truth = json.loads(path.with_suffix(".json").read_text())
        media = MediaConfig(
            round(SECONDS * frame_rate), frame_rate, size, audio=AudioImageConfig(sample_rate=SAMPLE_RATE)
        )
        last = probe(path).seconds - SECONDS - max(0.0, -shift / 1000) + 1e-6
        starts = [float(start) for start in np.arange(FIRST, last, SECONDS)]
        pictures = list(read_clips(path, starts, media))
        sounds = list(read_clips(path, [start - shift / 1000 for start in starts], media)) if shift else pictures
        for start, picture, sound in zip(starts, pictures, sounds, strict=True):
            if isinstance(picture, MediaError):
                raise picture
            if isinstance(sound, MediaError):
                raise sound
            info = {"class": truth["class"], "hits": [hit["time"] - start for hit in truth["hits"]]}
            clip = Clip(picture.frames, sound.waveform)
            records.append(ClipRecord(f"{path.stem} {start:.1f}", clip, frame_rate, SAMPLE_RATE, info))
    return records


def with_noise(records: Sequence[ClipRecord], where: str) -> list[ClipRecord]:
    """Return ``records`` with noise in the "pictures" or in the "sound"."""
    noisy = []
    for number, record in enumerate(records):
        noise = generator(0, f"noise in {where}", number)
        frames, waveform = record.clip.frames, record.clip.waveform
        if where == "pictures":
            frames = np.clip(frames + noise.normal(0, PICTURE_NOISE, frames.shape), 0, 255).astype(np.uint8)
        else:
            waveform = (waveform + noise.normal(0, SOUND_NOISE, waveform.shape)).astype(np.float32)
        noisy.append(replace(record, clip=Clip(frames, waveform)))
    return noisy


@dataclass
class Detection:
    """What a detector finds: numbers of hits of the truth, of detections, of pairs, and the times between pairs (s)."""

    true: int = 0
    detected: int = 0
    errors: list[float] = field(default_factory=list)

    def add(self, true: np.ndarray, detected: np.ndarray) -> None:
        """Pair each detection with the nearest hit that is left, within ``TOLERANCE``."""
        left = list(true)
        self.true, self.detected = self.true + len(true), self.detected + len(detected)
        for time in detected:
            nearest = min(left, key=lambda hit: abs(hit - time), default=np.inf)
            if abs(nearest - time) <= TOLERANCE:
                left.remove(nearest)
                self.errors.append(float(time - nearest))

    def summary(self) -> dict[str, float]:
        """Return shares and errors in ms."""
        size = 1000 * np.abs(self.errors)
        return {
            "hits": self.true,
            "found": len(self.errors) / self.true,
            "right": len(self.errors) / self.detected,
            "bias_ms": 1000 * float(np.median(self.errors)),
            "median_error_ms": float(np.median(size)),
            "p90_error_ms": float(np.percentile(size, 90)),
        }


@dataclass
class Detectors:
    """The detectors on the clips of one class."""

    seen: Detection = field(default_factory=Detection)
    heard: Detection = field(default_factory=Detection)
    clips: int = 0
    seen_classes: int = 0  # clips whose picture is told to be of the right class
    heard_classes: int = 0

    def summary(self) -> dict[str, object]:
        """Return the numbers of the table."""
        classes = {"picture": self.seen_classes / self.clips, "sound": self.heard_classes / self.clips}
        return {"picture": self.seen.summary(), "sound": self.heard.summary(), "right_class": classes}


def against_truth(records: Sequence[ClipRecord]) -> Detectors:
    """Return what the detectors find in ``records``, of :func:`corpus_clips` without a shift."""
    found = Detectors()
    for record in records:
        clip, kind = record.clip, str(record.info["class"])
        length, frame = len(clip.waveform) / record.sample_rate, 1 / record.frame_rate
        hits = sound_hits(clip.waveform, record.sample_rate)
        seen = np.array([hit.time for hit in picture_hits(clip.frames, record.frame_rate, kind)])
        found.seen.add(_between(record, frame / 2, length - frame / 2), seen)
        found.heard.add(_between(record, 0.0, length - WINDOW / 2), np.array([hit.time for hit in hits]))
        found.clips += 1
        found.seen_classes += picture_class(clip.frames) == kind
        found.heard_classes += sound_class(hits) == kind
    return found


def _between(record: ClipRecord, begin: float, end: float) -> np.ndarray:
    """Return the times of the true hits in a part of the clip; those closer than ``APART`` count as one."""
    kept: list[float] = []
    for time in record.info["hits"]:
        if begin < time <= end and (not kept or time - kept[-1] >= APART):
            kept.append(time)
    return np.array(kept)


def truth_table(found: dict[str, Detectors]) -> str:
    """Return the detectors against the truth as a Markdown table."""
    lines = [
        "| class | from | hits | found | right | bias (ms) | median error (ms) | 90 % below (ms) | class right |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, detectors in found.items():
        parts = (
            ("picture", detectors.seen, detectors.seen_classes),
            ("sound", detectors.heard, detectors.heard_classes),
        )
        for signal, detection, classes in parts:
            hits, share, right, bias, median, most = detection.summary().values()
            numbers = f"{hits} | {share:.3f} | {right:.3f} | {bias:+.1f} | {median:.1f} | {most:.1f}"
            lines.append(f"| {kind} | {signal} | {numbers} | {classes / detectors.clips:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
