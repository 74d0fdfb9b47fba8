"""What can be measured under protocols with the weights that are given, and ``mmldm evaluate`` of just that."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation import evaluate, protocols
from mmldm_scale.evaluation.arguments import add_evaluate_arguments
from mmldm_scale.evaluation.commands import run_here
from mmldm_scale.evaluation.networks import without_weights
from mmldm_scale.evaluation.protocols.protocol import SMALLEST, Protocol
from mmldm_scale.evaluation.report.report import JSON

Report = Mapping[str, Any]  # the content of a report.json


@dataclass(frozen=True)
class Measures:
    """What is measured of reconstructions under a protocol.

    Attributes:
        name: of the protocol, or its file.
        metrics: keys of those of its metrics whose networks have weights.
        left_out: the settings that the others need, by the metric's key.
    """

    name: str
    protocol: Protocol
    metrics: list[str]
    left_out: dict[str, str]

    @property
    def label(self) -> str:
        """What reports call the protocol; also the name of the folder of the report."""
        return protocols.label(self.name)

    def announce(self, prefix: str) -> None:
        """Print the metrics that are left out, if any; ``prefix`` stands before their names."""
        if self.left_out:
            titles = {key: self.protocol.metrics[key].title or key for key in self.left_out}
            names = ", ".join(f"{prefix}{titles[key]} (needs {setting}=PATH)" for key, setting in self.left_out.items())
            print(f"protocol {self.label}: not measured: {names}", file=sys.stderr, flush=True)


def find_measures(names: Sequence[str], settings: Evaluating) -> list[Measures]:
    """Return what can be measured under the protocols ``names`` with ``settings``.

    Raises:
        UserError: a protocol or a setting is not valid, or given weights are not there.
    """
    found = []
    for name in names:
        protocol = protocols.load(name)
        lacking = without_weights(protocol, settings)
        found.append(Measures(name, protocol, [key for key in protocol.metrics if key not in lacking], lacking))
    return found


def check_count(count: int) -> None:
    """Raise UserError if ``count`` reconstructions are too few for a figure."""
    if count < SMALLEST:
        raise UserError(f"--num-samples {count}: must be at least {SMALLEST} for figures under a protocol")


def measure(measures: Measures, metrics: Sequence[str], output: Path, options: Sequence[object]) -> Report | None:
    """Measure ``metrics``, as far as that is not done, with ``mmldm evaluate``; return the report.

    Args:
        output: its output folder. A report there that has other metrics, such as one from before further weights were
            given, is written anew; features are kept.
        options: its further arguments.

    Returns:
        None if other jobs are still making features.

    Raises:
        UserError: as ``mmldm evaluate`` does.
        CommandFailed: a process of it failed.
    """
    file = output / JSON
    if file.exists() and list(json.loads(file.read_text())["figures"]) != list(metrics):
        file.unlink()
    what = ["--protocol", measures.name, "--metrics", ",".join(metrics), "--output", output]
    run_here(add_evaluate_arguments, evaluate.run, [*what, *options])
    if not file.exists():
        return None
    report: Report = json.loads(file.read_text())
    return report
