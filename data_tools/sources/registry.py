"""The kinds of sources: one record each, which the commands and the configuration read.

    options = read_options({"kind": "audioset", "exclude": ["Music"]})  # an AudioSetOptions, checked
    open_source(options, folder).videos()

To add a kind to this package, write its file beside this one (its options, a subclass of ``SourceOptions``, and what
opens it) and add its line to :data:`SOURCES`. Another package declares an entry point in the group
``mmldm_data_tools.sources`` whose value is a :class:`SourceKind`, or calls :func:`register` before it calls a command.
"""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import restore

from .source import Source, SourceOptions

DEFAULT = "folder"
ENTRY_POINTS = "mmldm_data_tools.sources"


@dataclass(frozen=True)
class SourceKind:
    """One kind of source.

    Attributes:
        name: what ``--source`` and ``source.kind`` take.
        options: the dataclass of its settings; all have defaults, and ``kind`` is ``name``.
        open: returns the source over the media files in a folder; raises UserError if that is impossible.
    """

    name: str
    options: type[SourceOptions]
    open: Callable[[Any, Path], Source]


def _in_module(name: str, options: str, open_function: str) -> Callable[[], SourceKind]:
    """Return a function that makes the record of the source in the module ``name`` beside this file."""

    def load() -> SourceKind:
        module = importlib.import_module(f".{name}", __package__)
        return SourceKind(name, getattr(module, options), getattr(module, open_function))

    return load


SOURCES: dict[str, Callable[[], SourceKind]] = {
    "folder": _in_module("folder", "FolderOptions", "open_folder"),
    "audioset": _in_module("audioset", "AudioSetOptions", "AudioSetSource"),
    "landscape": _in_module("landscape", "LandscapeOptions", "LandscapeSource"),
    "aist": _in_module("aist", "AISTOptions", "AISTSource"),
    "vggsound": _in_module("vggsound", "VGGSoundOptions", "VGGSoundSource"),
    "webdataset": _in_module("webdataset", "WebDatasetOptions", "WebDatasetSource"),
}


def register(kind: SourceKind) -> None:
    """Add a kind from outside this package, for this process; raise ValueError if its name is taken."""
    if kind.name in SOURCES:
        raise ValueError(f"source {kind.name!r} is registered already")
    SOURCES[kind.name] = lambda: kind


def registered(name: str) -> SourceKind:
    """Return the record of ``name``; raise UserError if there is none."""
    if name not in SOURCES:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            SOURCES.setdefault(entry.name, entry.load)
    if name not in SOURCES:
        raise UserError(f"source.kind={name!s:.80}: must be one of {', '.join(SOURCES)}")
    record = SOURCES[name]
    return record()


def read_options(values: SourceOptions | Mapping[str, Any]) -> SourceOptions:
    """Return ``values``, the part ``source`` of a configuration, as the options of the kind that they name.

    A setting that only other kinds have must be empty or as it is by default there: files may list it, and so do the
    plans of sets that were begun when all kinds shared one dataclass. A folder with a list takes any of them, since
    the list may be a selection from another source, given with the file that configured that source.

    Raises:
        UserError: the kind is unknown; a setting is unknown, of the wrong type or of another kind.
    """
    if isinstance(values, SourceOptions):
        return values
    if not isinstance(values, Mapping):
        raise UserError(f"source: {values!r:.80}: must be settings, such as source.kind={DEFAULT}")
    kind = registered(str(values.get("kind", DEFAULT)))
    own = _defaults(kind)
    tolerant = kind.name == "folder" and bool(values.get("list"))
    fitting = {}
    for key, value in values.items():
        owners = [] if key in own else _owners(key)
        if owners and not tolerant and all(value != default for _, default in owners):
            names = ", ".join(name for name, _ in owners)
            raise UserError(f"source.{key}: only for source.kind={names}, not for {kind.name}")
        if not owners:
            fitting[key] = value
    return restore(kind.options, {**fitting, "kind": kind.name}, "source", "source.")


def open_source(options: SourceOptions, folder: Path) -> Source:
    """Return the source that ``options`` describe over the files in ``folder``; raise UserError if it cannot be."""
    return registered(options.kind).open(options, folder)


def _defaults(kind: SourceKind) -> dict[str, Any]:
    options = kind.options()
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _owners(key: str) -> list[tuple[str, Any]]:
    """Return the kinds that have the setting ``key``, each with its default."""
    kinds = ((name, _defaults(load())) for name, load in SOURCES.items())
    return [(name, defaults[key]) for name, defaults in kinds if key in defaults]
