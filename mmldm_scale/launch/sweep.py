"""The runs of one ``mmldm launch``: one, or with ``--sweep`` one for each combination of values.

    base, runs = compose("dit", files, overrides, ["training.learning_rate=1e-4,3e-4", "training.seed=0,1"])  # 4 runs

Each configuration is composed and checked here, so that a mistake is one line before anything is submitted.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmldm_scale import config
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ShardTraining
from mmldm_scale.trainables.registry import registered


@dataclass(frozen=True)
class Run:
    """One training of a launch.

    Attributes:
        name: the name of its combination, which is that of its folder; empty without a sweep.
        values: the values of the swept keys.
        schema: the composed configuration.
    """

    name: str
    values: dict[str, str]
    schema: ShardTraining


def compose(
    trainable: str, files: Sequence[str | Path], overrides: Sequence[str], sweeps: Sequence[str]
) -> tuple[Path, list[Run]]:
    """Compose the configuration of each combination of ``sweeps``, each "key=value,value"; without any, of one run.

    Returns: the folder of the launch, and its runs. The runs of a sweep have folders of their own below it.

    Raises:
        UserError: a configuration or a sweep is not valid.
    """
    axes = [_axis(text) for text in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys) or "run" in keys:
        raise UserError(f"--sweep {', '.join(keys)}: each key at most once, and not run, the folder of the whole sweep")
    runs = []
    for values in itertools.product(*(values for _, values in axes)):
        combination = dict(zip(keys, values, strict=True))
        assigned = [f"{key}={value}" for key, value in combination.items()]
        schema = config.load(registered(trainable).schema(), files, [*overrides, *assigned])
        runs.append(Run(_name(combination), combination, schema))
    names = [run.name for run in runs]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"--sweep: two combinations are named {repeated[0]}; give each value once")
    base = Path(runs[0].schema.run)
    if not sweeps:
        return base, runs
    return base, [replace(run, schema=replace(run.schema, run=str(base / run.name))) for run in runs]


def _axis(text: str) -> tuple[str, list[str]]:
    """Split "key=a,b" into its key and values; a comma in brackets belongs to its value."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"--sweep {text}: must have the form key=value,value")
    return key, re.split(r",(?![^\[{(]*[\]})])", values)


def _name(combination: dict[str, str]) -> str:
    """Return the name of the folder of ``combination``: "learning_rate=1e-4,seed=0"."""
    short = [key.rpartition(".")[2] for key in combination]
    keys = short if len(set(short)) == len(short) else list(combination)
    name = ",".join(f"{key}={value}" for key, value in zip(keys, combination.values(), strict=True))
    return re.sub(r"[^\w.,=+-]+", "-", name)
