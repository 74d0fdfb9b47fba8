"""``provenance.json`` of a weights folder: which training the weights are from. It holds no path of a machine.

It is not part of a model's identity (:func:`mmldm_scale.models.pretrained.fingerprint`): the same weights are the same
model whichever version of the code wrote them.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.json"
DIGITS = 12  # of a fingerprint, shown


@dataclass(frozen=True)
class Provenance:
    """The content of the file.

    Attributes:
        samples_seen: at the end of the training, or of the average.
        average_length: of the weights' average, as in ``training.ema_lengths``; None: as trained, not averaged.
        data: the sets that it learned from: {"name", "samples", "fingerprint"} each.
        inputs: fingerprints (hex) of everything that it learned from, by configuration key.
        code: {"version", "commit", "changed"} of the code that trained; commit is "" outside of a checkout.
    """

    samples_seen: int
    average_length: float | None
    data: list[dict[str, Any]]
    inputs: dict[str, str]
    code: dict[str, Any]

    def of_other_weights(self, samples_seen: int, average_length: float | None) -> "Provenance":
        """Return that of other weights of the same training."""
        return replace(self, samples_seen=samples_seen, average_length=average_length)

    def lines(self) -> list[str]:
        """Return the content for the user, a line each."""
        averaged = "as trained" if self.average_length is None else f"averaged with length {self.average_length:g}"
        data = [f"{part['name']} ({part['samples']:,} samples, {part['fingerprint'][:DIGITS]}…)" for part in self.data]
        others = [f"{key} {digest[:DIGITS]}…" for key, digest in self.inputs.items() if key != "shards"]
        commit = f", commit {self.code['commit']}" if self.code["commit"] else ""
        changed = ", with changes that are not committed" if self.code["changed"] else ""
        return [
            f"{self.samples_seen:,} samples seen, {averaged}",
            f"trained on {', '.join([*data, *others]) or 'unknown data'}",
            f"with mmldm_scale {self.code['version']}{commit}{changed}",
        ]


def write(folder: Path, provenance: Provenance) -> None:
    """Write ``provenance`` into the weights folder ``folder``."""
    (folder / PROVENANCE).write_text(json.dumps(asdict(provenance), indent=2) + "\n")


def read(folder: Path) -> Provenance | None:
    """Return the provenance of the weights in ``folder``; None if it has none, or none that can be read."""
    try:
        provenance = Provenance(**json.loads((folder / PROVENANCE).read_text()))
        provenance.lines()
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return provenance
