"""The checks of values that the dataclasses of the configuration use: ``require``, ``require_within`` and others."""

from collections.abc import Sequence

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import MODALITIES, Modality


def require(valid: bool, key: str, problem: str) -> None:
    """Raise UserError, "key: problem", unless the value of ``key`` is ``valid``."""
    if not valid:
        raise UserError(f"{key}: {problem}")


def require_within(config: object, prefix: str, **limits: tuple[float, float]) -> None:
    """Raise UserError unless each named value of ``config``, whose key begins with ``prefix``, lies in its limits."""
    for key, (low, high) in limits.items():
        value = getattr(config, key)
        require(low <= value <= high, f"{prefix}.{key}", f"{value:g}: must lie in {low:g}..{high:g}")


def require_modalities(modalities: Sequence[Modality], key: str) -> None:
    """Raise UserError unless ``modalities``, the value of ``key``, are both, in their order, or one of them."""
    allowed: list[list[Modality]] = [[*MODALITIES], ["video"], ["audio"]]
    both, video, audio, actual = (f"[{', '.join(names)}]" for names in (*allowed, list(modalities)))
    require(list(modalities) in allowed, key, f"{actual}: must be {both}, {video} or {audio}")
