"""What a distilled signal decoder can do, as its weights folder says (``mmldm train decoder-distil``).

Its autoencoder has the encoders of the one that taught it, so that latents made by that one are its own. The decoder
draws pictures by DDIM in a few numbers of steps alone, and has the teacher's guidance in its weights.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DecodingConfig
from mmldm_scale.diffusion.samplers.contract import even_intervals
from mmldm_scale.models import pretrained

KEY = "distilled"  # of the description in a weights folder's config.json
SAMPLERS = ("auto", "ddim")  # that a distilled decoder takes


@dataclass(frozen=True)
class Distillation:
    """How a signal decoder was distilled.

    Attributes:
        steps: numbers of steps that it decodes in.
        teacher: fingerprint of the autoencoder that taught it (64 hex digits), whose encoders it has.
        audio_guidance: guidance scale that the teacher drew audio images with; 1: none.
        video_guidance: likewise, of frames.
        target: "teacher", whose pictures it learned to draw, or "clip", the originals.
    """

    steps: tuple[int, ...]
    teacher: str
    audio_guidance: float = 1.0
    video_guidance: float = 1.0
    target: str = "teacher"

    @classmethod
    def read(cls, folder: Path) -> "Distillation | None":
        """Return what the autoencoder in the weights folder ``folder`` says; None: it is not distilled.

        Raises:
            UserError: the description is not one that :meth:`description` returns, or the folder cannot be read.
        """
        return cls.parse(pretrained.read_config(folder, "autoencoder").get(KEY), folder / pretrained.CONFIG)

    @classmethod
    def parse(cls, stored: Any, file: Path) -> "Distillation | None":
        """Return what ``stored``, of the key :data:`KEY` in ``file``, says; None for None; raise as :meth:`read`."""
        if stored is None:
            return None
        try:
            steps = tuple(map(int, stored["steps"]))
            audio, video = (float(stored[key]) for key in ("audio_guidance", "video_guidance"))
            if not steps or min(steps) < 1:
                raise ValueError("steps must be numbers of at least 1")
            return cls(steps, str(stored["teacher"]), audio, video, str(stored["target"]))
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[: pretrained.REASON_LENGTH]
            raise UserError(f"{file}: {KEY}: {reason}") from None

    def description(self) -> dict[str, Any]:
        """Return what :meth:`read` reads, as JSON values."""
        return {**dataclasses.asdict(self), "steps": list(self.steps)}

    def check(self, decoding: DecodingConfig, prefix: str = "decoding.") -> None:
        """Raise UserError, which names the key, unless the decoder can draw as ``decoding`` says."""
        if decoding.steps not in self.steps:
            steps = _alternatives(self.steps)
            raise UserError(f"{prefix}steps: {decoding.steps}: this signal decoder was distilled for {steps} steps")
        if decoding.sampler not in SAMPLERS:
            samplers = _alternatives(SAMPLERS)
            raise UserError(
                f"{prefix}sampler: {decoding.sampler}: must be {samplers}; this signal decoder is distilled"
            )
        for key in ("audio_guidance", "video_guidance"):
            value, learned = getattr(decoding, key), getattr(self, key)
            if value != 1:
                raise UserError(
                    f"{prefix}{key}: {value:g}: must be 1; this signal decoder is distilled, and was taught with "
                    f"guidance {learned:g}, which its pictures have"
                )


def timesteps(length: int, steps: Sequence[int]) -> list[int]:
    """Return the timesteps, in 0..``length`` - 1, that decoding in any of these numbers of ``steps`` visits, sorted.

    Each of ``steps`` must divide ``length``.
    """
    return sorted({time for number in steps for time, _ in even_intervals(length, number)})


def _alternatives(values: Sequence[object]) -> str:
    """Return ``values`` in words: "1, 2 or 4"."""
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
