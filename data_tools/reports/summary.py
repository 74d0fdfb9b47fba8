"""The lines that a command prints at its end: what was found, taken, dropped and made.

``describe(output, manifest, seconds)`` returns them for a finished set of clips or latents.
"""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from mmldm_scale.shards.manifest import DROPPED, Manifest

from ..sources.files import NOT_A_VIDEO


def describe(output: Path, manifest: Manifest, seconds: float) -> str:
    """Return what the set ``output`` was made of and holds; ``seconds`` is how long that took."""
    size = sum(shard.bytes for shard in manifest.shards)
    made = f"{manifest.samples} {manifest.kind} in {len(manifest.shards)} shards ({size / 1e6:.1f} MB)"
    found, reasons = f"{manifest.videos} entries, ", Counter(manifest.reasons)
    if not manifest.source:  # latents of clips have the entries of those
        entries = _dropped_entries(output, manifest)
        found = (
            f"{manifest.videos} entries found = {manifest.videos - manifest.failed_files} taken + "
            f"{manifest.failed_files} dropped{counted(entries)}\n{output}: "
        )
        reasons -= Counter(entry.partition(":")[0] for entry in entries.elements())
    windows = f"{manifest.samples} taken + {reasons.total()} dropped{counted(reasons)}"
    return f"{output}: {found}{manifest.candidates} candidates = {windows}; {made}; {seconds:.1f} s"


def counted(counts: Mapping[str, int]) -> str:
    """Return ``counts`` as " (3 corrupt, 2 silent)", the most frequent first; "" if there are none."""
    ranked = Counter(counts).most_common()
    return f" ({', '.join(f'{count} {name}' for name, count in ranked)})" if ranked else ""


def _dropped_entries(output: Path, manifest: Manifest) -> Counter[str]:
    """Return how many entries gave no candidate, by reason; "not_a_video: picture" names what they are instead."""
    with (output / DROPPED).open("rb") as lines:  # these come first in the log
        rows = (json.loads(line) for line in islice(lines, manifest.failed_files))
        return Counter(
            f"{row['reason']}: {row['detail']}" if row["reason"] == NOT_A_VIDEO else row["reason"] for row in rows
        )
