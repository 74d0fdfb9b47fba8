"""The lines that a command prints at its end: what was found, taken, dropped and made.

``describe(output, manifest, seconds)`` returns them for a finished set of clips or latents.
"""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from mmldm_scale.shards.manifest import DROPPED, Manifest

from ..sources.files import HIDDEN_FILE, NOT_A_VIDEO
from ..sources.video import BY_NAME


def describe(output: Path, manifest: Manifest, seconds: float) -> str:
    """Return what the set ``output`` was made of and holds; ``seconds`` is how long that took."""
    size = sum(shard.bytes for shard in manifest.shards)
    made = f"{manifest.samples} {manifest.kind} in {len(manifest.shards)} shards ({size / 1e6:.1f} MB)"
    found, reasons = f"{manifest.videos} entries, ", Counter(manifest.reasons)
    if not manifest.source:  # latents of clips have the entries of those
        entries = _failed_entries(output, manifest)
        others = Counter({kind: count for (reason, kind), count in entries.items() if reason in BY_NAME})
        dropped = Counter({reason: count for (reason, _), count in entries.items() if reason not in BY_NAME})
        found = (
            f"{manifest.videos} entries found = {manifest.videos - manifest.failed_files} taken + "
            f"{dropped.total()} dropped{counted(dropped)}"
            + (f" + {others.total()} other files{counted(others)}" if others else "")
            + f"\n{output}: "
        )
        reasons -= Counter(reason for reason, _ in entries.elements())
    windows = f"{manifest.samples} taken + {reasons.total()} dropped{counted(reasons)}"
    return f"{output}: {found}{manifest.candidates} candidates = {windows}; {made}; {seconds:.1f} s"


def counted(counts: Mapping[str, int]) -> str:
    """Return ``counts`` as " (3 corrupt, 2 silent)", the most frequent first; "" if there are none."""
    ranked = Counter(counts).most_common()
    return f" ({', '.join(f'{count} {name}' for name, count in ranked)})" if ranked else ""


def _failed_entries(output: Path, manifest: Manifest) -> Counter[tuple[str, str]]:
    """Return how many entries gave no candidate, by reason and, of files whose name says that they are no videos, kind.

    A hidden file's kind is "hidden", another's what it is instead of a video, such as "picture".
    """
    with (output / DROPPED).open("rb") as lines:  # these come first in the log
        rows = (json.loads(line) for line in islice(lines, manifest.failed_files))
        return Counter((row["reason"], _kind(row)) for row in rows)


def _kind(row: dict[str, str]) -> str:
    if row["reason"] == HIDDEN_FILE:
        return "hidden"
    return row["detail"] if row["reason"] == NOT_A_VIDEO else ""
