"""What a table is asked for, and what its parts have in common."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config.evaluating import MakingTables
from mmldm_scale.evaluation.measures import Measures, Report
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.evaluation.tables.definition import TableDefinition

HELD_OUT = "held-out clips"  # how protocols begin to name a reference that models were not trained on
Place = tuple[str, str, str]  # of a report: what reports call its protocol, name of the row, name of the data set


@dataclass(frozen=True)
class Request:
    """A table that is to be made.

    Attributes:
        measures: what can be measured, for each protocol.
    """

    args: argparse.Namespace
    definition: TableDefinition
    settings: MakingTables
    measures: Sequence[Measures]

    @property
    def output(self) -> Path:
        """The folder of the table and of everything that it is made of."""
        output: Path = self.args.output
        return output

    @property
    def count(self) -> int:
        """How many samples, or reconstructions, are made: as many as the user or the protocols say."""
        count: int | None = self.args.num_samples
        return count or max(measures.protocol.samples.count for measures in self.measures)

    def clips(self, name: str) -> Path:
        """Return the set of clips of the data set ``name``; raise UserError if it is not given."""
        return self._set("clips", self.settings.clips, name, "clips")

    def reference(self, name: str, protocol: Protocol) -> Path:
        """Return the set of clips of ``name`` that ``protocol`` asks for; raise UserError if it is not given."""
        return self.held_out(name) if protocol.reference.split.startswith(HELD_OUT) else self.clips(name)

    def held_out(self, name: str) -> Path:
        """Return the set of clips of ``name`` that models were not trained on; raise UserError if it is not given."""
        return self._set("held_out", self.settings.held_out, name, "clips_test")

    def _set(self, key: str, given: Mapping[str, str], name: str, folder: str) -> Path:
        if name in given:
            return Path(given[name])
        if self.args.data is None:
            raise UserError(f"{key}.{name}: not given; give {key}.{name}=DIR, or --data DIR with {name}/{folder} in it")
        data: Path = self.args.data
        return data / name / folder


@dataclass(frozen=True)
class Row:
    """A row of ours.

    Attributes:
        parameters, macs: of its model, as texts; "" where they are not asked for.
    """

    name: str
    label: str
    parameters: str = ""
    macs: str = ""


@dataclass(frozen=True)
class Measured:
    """What was measured for a table: its rows in order, the reports, and in lines what is left out."""

    rows: Sequence[Row]
    reports: Mapping[Place, Report]
    left_out: Sequence[str] = ()


def words(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return ``settings``, which may be nested, as ``key.sub=value`` overrides."""
    parts: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts += words(value, f"{prefix}{key}.")
        else:
            parts.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return parts
