"""Settings of runs that were begun by an earlier version of the program, in the terms of this one.

``version`` in a run's config.yaml is :data:`~mmldm_scale.config.training.VERSION` of the program that began it. A run
without it is of version 1 or, if ``init`` is missing too, of version 0. Since then these settings have changed their
meaning or their default, and kept their names:

    =====================================================  =====  ==================================================
    setting                                                until  what becomes of a run that was begun before
    =====================================================  =====  ==================================================
    posterior, which was missing (dit)                     0      resumes with posterior=draw, which it did
    adversarial.loss=hinge (kl_vae)                        0      resumes with hinge_linear, that form's name now
    an autoencoder's timesteps, L_MSE, weight of λ_gan,    0      refused: it has context_dropout in place of
    hinge, dropout, detach_projectors, place of features          condition_dropout
    contrastive.weight: the wrong pairings (dit)           1      refused, unless it is 0
    diffusion.continued: the samples (dit)                 1      refused, unless it is 0
    =====================================================  =====  ==================================================

To change the meaning of a setting, raise VERSION by one, and say here what becomes of earlier runs.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from mmldm_scale.common.errors import UserError
from mmldm_scale.config.training import VERSION


def in_present_terms(content: Any, schema: Any, run: Path) -> dict[str, Any]:
    """Return the settings of ``run`` as this version would write them.

    Args:
        content: what the run's config.yaml holds.
        schema: the settings with which the run is to be resumed.

    Raises:
        UserError: this version cannot train as the run was trained, or ``content`` is no mapping.
    """
    if not OmegaConf.is_dict(content):
        raise UserError(f"{run}: its config.yaml is no mapping of keys to values")
    settings = cast(dict[str, Any], OmegaConf.to_container(content))
    if "version" not in {field.name for field in dataclasses.fields(schema)}:
        return settings
    version = settings.get("version", 1 if "init" in settings else 0)
    if not isinstance(version, int) or version > VERSION:
        problem = f"version={version!r:.20} in its config.yaml, here {VERSION}"
        raise UserError(f"{run}: was begun by a newer version of the program ({problem}); use that, or another run=")
    if version < VERSION:
        changed = _changed(schema.trainable, settings)
        if changed:
            raise UserError(
                f"{run}: was begun by an earlier version of the program, in which {changed} meant something else; "
                f"resume it with that version, or begin another run= with its weights: init={run}"
            )
        settings = _renamed(schema.trainable, version, settings)
    return {**settings, "version": VERSION}


def _changed(trainable: str, settings: dict[str, Any]) -> str:
    """Return what in ``settings`` of an earlier version has another meaning now; "" if there is nothing."""
    if trainable == "autoencoder" and "context_dropout" in settings:  # of version 0; now it is condition_dropout
        return "the loss and the dropout (context_dropout) of autoencoders"
    if trainable == "dit":
        for section, key in (("contrastive", "weight"), ("diffusion", "continued")):  # with 0 they have no effect
            part = settings.get(section)
            if isinstance(part, dict) and part.get(key):
                return f"{section}.{key}={part[key]}"
    return ""


def _renamed(trainable: str, version: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` of a run of ``version`` with the names that their meanings have now."""
    adversarial = settings.get("adversarial")
    if trainable == "dit" and version < 1:
        return {"posterior": "draw", **settings}
    if trainable == "kl_vae" and version < 1 and isinstance(adversarial, dict) and adversarial.get("loss") == "hinge":
        return {**settings, "adversarial": {**adversarial, "loss": "hinge_linear"}}
    return settings
