"""The check that every part of the configuration uses."""

from mmldm_scale.common.errors import UserError


def require(fits: bool, key: str, problem: str) -> None:
    """Raise UserError, "key: problem", unless the value of ``key`` ``fits``."""
    if not fits:
        raise UserError(f"{key}: {problem}")
