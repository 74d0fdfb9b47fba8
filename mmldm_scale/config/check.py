"""The checks of values that every dataclass of the configuration uses: ``require`` and ``require_within``."""

from mmldm_scale.common.errors import UserError


def require(valid: bool, key: str, problem: str) -> None:
    """Raise UserError, "key: problem", unless the value of ``key`` is ``valid``."""
    if not valid:
        raise UserError(f"{key}: {problem}")


def require_within(config: object, prefix: str, **limits: tuple[float, float]) -> None:
    """Raise UserError unless each named value of ``config``, whose key begins with ``prefix``, lies in its limits."""
    for key, (low, high) in limits.items():
        value = getattr(config, key)
        require(low <= value <= high, f"{prefix}.{key}", f"{value:g}: must lie in {low:g}..{high:g}")
