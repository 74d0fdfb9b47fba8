"""Samples beside clips of the corpus, the best that can be reached, and the same clips with shuffled sounds, chance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.rng import generator
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.synthetic.agreement import VALUES, record_agreement
from mmldm_scale.media.clip import Clip

SAMPLES, CORPUS, CHANCE = "samples", "corpus", "corpus, sounds shuffled"  # titles of the rows


@dataclass(frozen=True)
class BenchmarkRow:
    """The benchmark of one set of clips.

    Attributes:
        title: of the row.
        clips: number of clips.
        values: mean over the clips that have one, by the names of ``VALUES``; NaN if none has.
        counts: how many clips have one, by the same names.
    """

    title: str
    clips: int
    values: dict[str, float]
    counts: dict[str, int]


def benchmark(samples: Iterable[ClipRecord], corpus: Sequence[ClipRecord], seed: int = 0) -> list[BenchmarkRow]:
    """Return the rows of ``samples``, of the ``corpus`` clips, and of these with shuffled sounds, in this order.

    Args:
        samples: with frames and sound.
        corpus: clips of the corpus that the model was not trained on, at least two.
        seed: of the shuffling.

    Raises:
        UserError: there are too few clips, or one lacks frames or sound or is too small.
    """
    chance = shuffle_sounds(corpus, seed)
    return [benchmark_row(SAMPLES, samples), benchmark_row(CORPUS, corpus), benchmark_row(CHANCE, chance)]


def benchmark_row(title: str, records: Iterable[ClipRecord]) -> BenchmarkRow:
    """Return the row of ``records``.

    Raises:
        UserError: there are none, or one lacks frames or sound or is too small.
    """
    by_clip = [record_agreement(record).values() for record in records]
    if not by_clip:
        raise UserError(f"synthetic benchmark: {title}: no clips; needs at least 1")
    present = {name: [clip[name] for clip in by_clip if not math.isnan(clip[name])] for name, *_ in VALUES}
    means = {name: sum(numbers) / len(numbers) if numbers else math.nan for name, numbers in present.items()}
    return BenchmarkRow(title, len(by_clip), means, {name: len(numbers) for name, numbers in present.items()})


def shuffle_sounds(records: Sequence[ClipRecord], seed: int) -> list[ClipRecord]:
    """Return ``records``, each with the sound of another one; the choice is a function of ``seed`` and their number.

    Raises:
        UserError: there are fewer than two.
    """
    if len(records) < 2:
        raise UserError(f"synthetic benchmark: {len(records)} clips of the corpus; needs at least 2")
    order = generator(seed, "shuffled sounds", len(records)).permutation(len(records)).tolist()
    giver = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [
        replace(
            record,
            clip=Clip(record.clip.frames, records[giver[i]].clip.waveform),
            sample_rate=records[giver[i]].sample_rate,
        )
        for i, record in enumerate(records)
    ]


def table(rows: Sequence[BenchmarkRow]) -> str:
    """Return ``rows`` as a Markdown table; a dash stands where no clip has a value."""
    arrows = {"higher": "↑", "lower": "↓"}
    heads = [f"{name} {arrows[better]}" + (f" ({unit})" if unit else "") for name, unit, better in VALUES]
    lines = ["| clips | number | " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(VALUES) + 1)]
    for row in rows:
        numbers = [_number(row.values[name], 1 if unit else 3) for name, unit, _ in VALUES]
        lines.append(f"| {row.title} | {row.clips} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def _number(value: float, digits: int) -> str:
    return "—" if math.isnan(value) else f"{value:.{digits}f}"
