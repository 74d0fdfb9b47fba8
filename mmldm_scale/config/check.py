"""``require``: the check of a value that every dataclass of the configuration uses."""

from mmldm_scale.common.errors import UserError


def require(valid: bool, key: str, problem: str) -> None:
    """Raise UserError, "key: problem", unless the value of ``key`` is ``valid``."""
    if not valid:
        raise UserError(f"{key}: {problem}")
