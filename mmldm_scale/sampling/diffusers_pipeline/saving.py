"""Writes a pipeline to a folder, and the ``model_index.json`` by which diffusers knows its parts."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mmldm_scale.common.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.sampling.diffusers_pipeline.loading import INDEX, PIPELINE

PARTS_MODULE = "mmldm_scale.sampling.diffusers_pipeline.parts"  # of our classes, in model_index.json
OWN_PARTS = ("dit", "autoencoder")
CARD, CODE = "README.md", "pipeline.py"  # in an exported folder, beside the parts
CODE_FOLDER = "mmldm_code"  # likewise; the name goes on with the version of the code


def save(
    pipe: DiffusionPipeline, folder: str | os.PathLike[str], by_diffusers: Callable[..., None], options: dict[str, Any]
) -> None:
    """Write ``pipe`` to ``folder`` by the library's own function, and what that leaves out.

    Raises:
        UserError: ``options`` ask for another format than safetensors, for a variant, or for an upload.
    """
    for name in ("variant", "use_flashpack", "push_to_hub"):
        if options.pop(name, None):
            raise UserError(f"{name}: not possible here; mmldm export --push-to-hub uploads a pipeline")
    if not options.pop("safe_serialization", True):
        raise UserError("safe_serialization: must be true: safetensors only")
    by_diffusers(folder, safe_serialization=True, **options)
    write_index(Path(folder), pipe.components)
    _copy_companions(Path(pipe.name_or_path or ""), Path(folder))
    pretrained.seal(Path(folder))


def write_index(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write the ``model_index.json`` of a pipeline of ``parts``, by their names; None: it has no such part."""
    index: dict[str, Any] = {"_class_name": PIPELINE, "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        library = PARTS_MODULE if name in OWN_PARTS else type(part).__module__.split(".")[0]
        index[name] = [None, None] if part is None else [library, type(part).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_companions(source: Path, folder: Path) -> None:
    """Copy model card and code from the folder that the pipeline is from, if it is one, into the new ``folder``."""
    if not (source / INDEX).is_file() or source.resolve() == folder.resolve():
        return
    for name in (CARD, CODE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for code in filter(Path.is_dir, source.glob(f"{CODE_FOLDER}*")):
        shutil.copytree(code, folder / code.name, dirs_exist_ok=True)
