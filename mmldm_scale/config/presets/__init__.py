"""The configuration files that come with the package: ``FOLDER/NAME.yaml`` beside this file, each of them a preset.

    presets.names("dit")                          # ["B", "L", "S", "audio", "demo", "landscape", "long", ...]
    presets.path("L", "dit")                      # the file of `mmldm train dit --preset L`
    presets.path("cluster/a800")                  # and of `--preset cluster/a800`, which any command may give
    presets.dit_models()["L"]                     # the DiTConfig in dit/L.yaml

A preset without a folder in its name belongs to the command: the folder ``dit`` for ``mmldm train dit``. To add a
preset, add its YAML file. A checkout has these folders as ``configs/`` as well.
"""

from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.config.compose import read_yaml, restore
from mmldm_scale.config.models import DiTConfig

FOLDER = Path(__file__).parent
SUFFIX = ".yaml"
CLUSTERS = "cluster"  # the folder whose presets suit every trainable


def names(folder: str) -> list[str]:
    """Return the names of the presets in ``folder``, sorted; none if there is no such folder."""
    return sorted(file.stem for file in (FOLDER / folder).glob(f"*{SUFFIX}"))


def folders() -> list[str]:
    """Return the names of the folders that hold presets, sorted."""
    return sorted({file.parent.name for file in FOLDER.glob(f"*/*{SUFFIX}")})


def path(preset: str, folder: str = "") -> Path:
    """Return the file of ``preset``.

    Args:
        preset: "NAME" in ``folder``, or "FOLDER/NAME" in another folder.
        folder: where a name without a folder belongs.

    Raises:
        UserError: there is no such preset; the message lists those that there are.
    """
    place, slash, name = preset.rpartition("/")
    place = place if slash else folder
    if place in folders() and name in names(place):
        return FOLDER / place / f"{name}{SUFFIX}"
    raise UserError(f"preset {preset!r:.80}: must be one of {', '.join(_allowed(place if slash else '', folder))}")


def dit_models() -> dict[str, DiTConfig]:
    """Return the model of each preset in ``dit/`` that sets its depth, by the preset's name, the smallest first."""
    contents = {name: read_yaml(path(name, "dit")) for name in names("dit")}
    models = {
        name: restore(DiTConfig, content["model"], name)
        for name, content in contents.items()
        if "depth" in content.get("model", {})
    }
    return dict(sorted(models.items(), key=lambda item: item[1].depth * item[1].width ** 2))


def _allowed(place: str, folder: str) -> list[str]:
    """Return what to offer in place of an unknown preset: those of its own folder if there is one, else the usual."""
    if place in folders():
        return [f"{place}/{name}" for name in names(place)]
    return [*names(folder), *(f"{CLUSTERS}/{name}" for name in names(CLUSTERS))]
