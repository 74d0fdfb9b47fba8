"""The keys of a table's file, as dataclasses; their comments are the documentation (docs/reference/evaluate.md)."""

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from mmldm_scale.config import require
from mmldm_scale.diffusion.tasks import GenerationTask


@dataclass
class DataSet:
    """A data set of a table: a group of columns."""

    title: str = MISSING  # in the table
    preset: str = ""  # of `mmldm sample`, for models trained on it; empty: none


@dataclass
class SampledRow:
    """A row of samples."""

    label: str = MISSING  # in the table
    task: GenerationTask = "svg"  # what is generated
    runs: dict[str, str] = field(default_factory=dict)  # by data set: the NAME of the setting runs.NAME


@dataclass
class AblationRows:
    """Rows that are the variants of an ablation."""

    variants: str = MISSING  # preset or YAML file with the variants
    preset: str = MISSING  # preset or YAML file of the autoencoder's training


@dataclass
class PublishedRow:
    """A row of the paper."""

    label: str = MISSING  # the system
    row: str = ""  # the row of ours, or variant, that it stands beside
    protocol: str = ""  # the protocol that it was measured under; empty: not known
    values: dict[str, dict[str, float]] = field(default_factory=dict)  # by data set and key of the metric
    parameters: str = ""  # number of parameters
    macs: str = ""  # MACs of linear layers
    source: str = MISSING  # where it is published


@dataclass
class TableDefinition:
    """A table; it has either rows or an ablation."""

    title: str = MISSING  # its heading
    about: str = ""  # what a reader has to know
    protocols: list[str] = MISSING  # a part of the table for each; --protocol takes their place
    sets: dict[str, DataSet] = MISSING  # data sets by name; that of its folder below --data
    rows: dict[str, SampledRow] = field(default_factory=dict)  # by name
    ablation: AblationRows | None = None  # in place of rows
    sizes: bool = False  # columns for parameters and MACs of the models
    published: list[PublishedRow] = field(default_factory=list)  # the paper's rows

    def __post_init__(self) -> None:
        require(bool(self.rows) != bool(self.ablation), "rows", "either rows or ablation must be given")
        require(bool(self.sets), "sets", "must name at least one data set")
        require(self.ablation is None or len(self.sets) == 1, "sets", "must be one data set with an ablation")
        for name in (*self.sets, *self.rows):
            valid = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
            require(valid, name, "names of rows and data sets must be letters, digits, _ and -")
        for name, row in self.rows.items():
            for data, run in row.runs.items():
                require(data in self.sets, f"rows.{name}.runs.{data}", f"must be one of {', '.join(self.sets)}")
                valid = re.fullmatch(r"[A-Za-z0-9_-]+", run) is not None
                require(valid, f"rows.{name}.runs.{data}", "must be letters, digits, _ and -")
        for i, published in enumerate(self.published):
            for data in published.values:
                require(data in self.sets, f"published[{i}].values.{data}", f"must be one of {', '.join(self.sets)}")
