"""The rows of Tables 5 and 6: ``mmldm ablation`` trains the variants and measures their reconstructions.

Its runs and its own table lie in ``ablation/`` of the output folder, and its settings in ``settings/``.
"""

import json
import tempfile
from pathlib import Path

import yaml

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.config import presets
from mmldm_scale.evaluation import ablation
from mmldm_scale.evaluation.arguments import FINETUNE_FILE, add_ablation_arguments
from mmldm_scale.evaluation.commands import run_here
from mmldm_scale.evaluation.tables.request import Measured, Request, Row, words

ABLATION, SETTINGS = "ablation", "settings"  # subfolders of the output folder


def make(request: Request) -> Measured:
    """Train and measure what is missing.

    Raises:
        UserError: as ``mmldm ablation`` does.
        CommandFailed: a training or a measurement failed.
    """
    _run(request, request.output / SETTINGS)
    (data,) = request.definition.sets
    variants = json.loads((request.output / ABLATION / ablation.TABLE_DATA).read_text())
    rows = [Row(variant["name"], variant["title"]) for variant in variants]
    reports = {
        (label, variant["name"], data): report for variant in variants for label, report in variant["reports"].items()
    }
    return Measured(rows, reports)


def check(request: Request) -> None:
    """Check everything that can be checked before a training; raise UserError as ``mmldm ablation --check``."""
    with tempfile.TemporaryDirectory() as folder:
        _run(request, Path(folder), "--check")


def _run(request: Request, folder: Path, *more: str) -> None:
    """Run the ablation, with files of settings in ``folder``."""
    args, settings, definition = request.args, request.settings, request.definition
    assert definition.ablation is not None
    (data,) = definition.sets
    options: list[object] = ["--variants", _file(definition.ablation.variants), "--num-samples", request.count]
    options += ["--input", request.held_out(data), "--output", request.output / ABLATION]
    for name in (definition.ablation.preset, *settings.train_presets):
        options += ["--config", _file(name)]
    for each in request.measures:
        options += ["--protocol", each.name]
    files = {
        "finetune": (dict(settings.finetune), [FINETUNE_FILE]),
        "reconstruct": (dict(settings.reconstruct), []),
        "evaluate": ({"weights": dict(settings.weights)}, []),
    }
    for name, (content, defaults) in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{name}.yaml", yaml.safe_dump(content, allow_unicode=True).encode())
        for file in (*defaults, folder / f"{name}.yaml"):
            options += [f"--{name}", file]
    options += ["--processes", args.processes] if args.processes > 1 else []
    options += ["--under", args.under] if args.under else []
    shards = {"shards": str(request.clips(data)), **settings.train}
    run_here(add_ablation_arguments, ablation.run, [*options, *more, *words(shards)])


def _file(name: str) -> Path:
    """Return the YAML file that ``name`` names: a preset's, or a path."""
    return Path(name) if name.endswith((".yaml", ".yml")) else presets.path(name)
