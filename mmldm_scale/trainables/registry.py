"""What can be trained: one record for each trainable, which every command reads.

    registered("dit").schema()      # the dataclass of its configuration
    registered("dit").build(config)  # the Trainable that training.loop trains

A record names its functions as ``"module:attribute"``, so that a command which only needs a name imports no model. To
add a trainable, make its folder beside this file and add its line to :data:`TRAINABLES`.

Another package adds one as an entry point of the group :data:`ENTRY_POINTS`, whose name is the trainable's and whose
object is its :class:`Registration`; ``mmldm train NAME`` finds it as soon as that package is installed. A program that
calls these functions itself may call :func:`register` instead.
"""

import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmldm_scale.common.errors import UserError

if TYPE_CHECKING:  # a command line that is only parsed imports neither
    from mmldm_scale.config import ShardTraining
    from mmldm_scale.shards.manifest import Kind, Manifest

ENTRY_POINTS = "mmldm_scale.trainables"  # group of the entry points of other packages


@dataclass(frozen=True)
class Registration:
    """One trainable.

    Attributes:
        name: what ``mmldm train NAME`` takes; a run's config.yaml holds it as ``trainable``.
        schema_path: "module:attribute" of its configuration, a subclass of :class:`ShardTraining`.
        build_path: "module:attribute" of ``build_trainable(config)``, which returns a
            :class:`mmldm_scale.training.trainable.Trainable`.
        outline_path: "module:attribute" of ``outline(config)``, which returns a step of it on shapes alone
            (:class:`mmldm_scale.training.trainable.StepOutline`); the planner runs that. A parameter ``manifest``, if
            it has one, is the Manifest of the set whose samples the step is for.
        shards: kind of the shard sets that it learns from.
        weights: kind of the weights folders that it writes.
        weights_prefix: what the names of the exported parameters begin with in the trained module.
    """

    name: str
    schema_path: str
    build_path: str
    outline_path: str
    shards: "Kind"
    weights: str
    weights_prefix: str

    def schema(self) -> "type[ShardTraining]":
        """Return the dataclass of its configuration."""
        schema: type[ShardTraining] = _resolve(self.schema_path)
        return schema

    def build(self, config: Any) -> Any:
        """Return the trainable that ``config`` describes; raise UserError if data or settings cannot work."""
        return _resolve(self.build_path)(config)

    def outline(self, config: Any, manifest: "Manifest | None" = None) -> Any:
        """Return one step of the trainable on the device "meta".

        Args:
            manifest: of the set whose samples the step is for; None: the trainable's own sizes, those of the paper.
        """
        outline = _resolve(self.outline_path)
        return outline(config) if manifest is None else outline(config, manifest=manifest)

    def takes_manifest(self) -> bool:
        """Return whether :meth:`outline` can be for the samples of a given set."""
        return "manifest" in inspect.signature(_resolve(self.outline_path)).parameters


def _record(name: str, schema: str, shards: "Kind", weights_prefix: str, weights: str = "") -> Registration:
    """Return the record of the trainable in the folder ``name`` beside this file; ``weights``: ``name`` if empty."""
    package = f"{__package__}.{name.replace('-', '_')}"
    return Registration(
        name=name,
        schema_path=f"{package}.config:{schema}",
        build_path=f"{package}.trainable:build_trainable",
        outline_path=f"{package}.trainable:outline",
        shards=shards,
        weights=weights or name,
        weights_prefix=weights_prefix,
    )


TRAINABLES: dict[str, Registration] = {
    record.name: record
    for record in (
        _record("kl_vae", "KLVAETraining", shards="clips", weights_prefix="vae."),
        _record("autoencoder", "AutoencoderTraining", shards="clips", weights_prefix="autoencoder."),
        _record(
            "decoder-distil",
            "DecoderDistilTraining",
            shards="clips",
            weights_prefix="autoencoder.",
            weights="autoencoder",
        ),
        _record("dit", "DiTTraining", shards="latents", weights_prefix="dit."),
    )
}


def register(record: Registration) -> None:
    """Add a trainable from outside this package; raise ValueError if its name is taken."""
    if record.name in TRAINABLES:
        raise ValueError(f"trainable {record.name!r} is registered already")
    TRAINABLES[record.name] = record


def names() -> list[str]:
    """Return the names of all trainables: those here, then those of other packages."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return [*TRAINABLES, *sorted(points.names - TRAINABLES.keys())]


def registered(name: str) -> Registration:
    """Return the record of ``name``, which may be that of another package.

    Raises:
        UserError: there is none, or the other package does not provide a record of this name.
    """
    if name not in TRAINABLES:
        points = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            raise UserError(f"trainable {name!r:.80}: must be one of {', '.join(names())}")
        register(_load(next(iter(points))))
    return TRAINABLES[name]


def _load(point: importlib.metadata.EntryPoint) -> Registration:
    """Return the record that an entry point names; raise UserError if it names something else."""
    try:
        record = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"trainable {point.name}: {point.value} cannot be imported: {error}") from None
    if not isinstance(record, Registration) or record.name != point.name:
        raise UserError(f"trainable {point.name}: {point.value} must be a Registration named {point.name}")
    return record


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
