"""F17: hostile YAML and overrides are a configuration or one line, and never code."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from data_tools.config import Preparation, Selection
from mmldm_scale import config
from mmldm_scale.config import presets
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.kl_vae.config import KLVAETraining
from tests.support.faults import fault_trials, guard, mutate

SCHEMAS = {
    "data/audioset_select.yaml": Selection,
    "data/*.yaml": Preparation,
    "dit/*.yaml": DiTTraining,
    "sample/*.yaml": config.Sampling,
    "autoencoder/*.yaml": AutoencoderTraining,
    "kl_vae/*.yaml": KLVAETraining,
    "cluster/*.yaml": KLVAETraining,
}

Settings = list[tuple[str, type]]  # text in YAML and the schema that it fits


def load(settings: Settings, folder: Path, number: int) -> str:
    rng = np.random.default_rng([17, number])
    text, schema = settings[number % len(settings)]
    file = folder / "settings.yaml"
    file.write_bytes(mutate.text(text, rng))
    overrides = [f"{key.name}=x" for key in dataclasses.fields(schema) if key.name in ("shards", "kl_vae")]
    if rng.random() < 0.3:
        line = text.splitlines()[-1].strip().replace(": ", "=")
        overrides.append(mutate.text(line, rng).decode("utf-8", "surrogateescape"))
    return type(config.load(schema, [file], overrides)).__name__


@fault_trials.counts(full=10_000, short=150)
def test_settings_are_settings_or_one_line(count, tmp_path):
    settings = [
        (file.read_text(), schema) for glob, schema in SCHEMAS.items() for file in sorted(presets.FOLDER.glob(glob))
    ]
    settings += [(config.dump(schema()), schema) for schema in (Preparation, config.Sampling, Selection)]
    guard.run("F17 hostile settings", count, functools.partial(load, settings), tmp_path)
