"""What can be trained: one record for each trainable, which every command reads.

    registered("dit").schema()      # the dataclass of its configuration
    registered("dit").build(config)  # the Trainable that training.loop trains

A record names its functions as ``"module:attribute"``, so that a command which only needs a name imports no model. To
add a trainable, make its folder beside this file and add its line to :data:`TRAINABLES`; code outside this package
calls :func:`register` before it calls a command.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmldm_scale.common.errors import UserError

if TYPE_CHECKING:  # a command line that is only parsed imports neither
    from mmldm_scale.config import ShardTraining
    from mmldm_scale.shards.manifest import Kind


@dataclass(frozen=True)
class Registration:
    """One trainable.

    Attributes:
        name: what ``mmldm train NAME`` takes; a run's config.yaml holds it as ``trainable``.
        schema_path: "module:attribute" of its configuration, a subclass of :class:`ShardTraining`.
        build_path: "module:attribute" of ``build_trainable(config)``, which returns a
            :class:`mmldm_scale.training.trainable.Trainable`.
        outline_path: "module:attribute" of ``outline(config)``, which returns a step of it on shapes alone
            (:class:`mmldm_scale.training.trainable.StepOutline`); the planner runs that.
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
        return _resolve(self.schema_path)

    def build(self, config: Any) -> Any:
        """Return the trainable that ``config`` describes; raise UserError if data or settings cannot work."""
        return _resolve(self.build_path)(config)

    def outline(self, config: Any) -> Any:
        """Return one step of the trainable on the device "meta"."""
        return _resolve(self.outline_path)(config)


def _record(name: str, schema: str, shards: "Kind", weights_prefix: str) -> Registration:
    """Return the record of the trainable in the folder ``name`` beside this file."""
    package = f"{__package__}.{name}"
    return Registration(
        name=name,
        schema_path=f"{package}.config:{schema}",
        build_path=f"{package}.trainable:build_trainable",
        outline_path=f"{package}.trainable:outline",
        shards=shards,
        weights=name,
        weights_prefix=weights_prefix,
    )


TRAINABLES: dict[str, Registration] = {
    record.name: record
    for record in (
        _record("kl_vae", "KLVAETraining", shards="clips", weights_prefix="vae."),
        _record("autoencoder", "AutoencoderTraining", shards="clips", weights_prefix="autoencoder."),
        _record("dit", "DiTTraining", shards="latents", weights_prefix="dit."),
    )
}


def register(record: Registration) -> None:
    """Add a trainable from outside this package; raise ValueError if its name is taken."""
    if record.name in TRAINABLES:
        raise ValueError(f"trainable {record.name!r} is registered already")
    TRAINABLES[record.name] = record


def registered(name: str) -> Registration:
    """Return the record of ``name``; raise UserError if there is none."""
    if name not in TRAINABLES:
        raise UserError(f"trainable {name!r:.80}: must be one of {', '.join(TRAINABLES)}")
    return TRAINABLES[name]


def _resolve(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
