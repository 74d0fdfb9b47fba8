"""The table of samplers by name, and which noise process and numbers of steps each of them takes.

To add a sampler, write a function as :mod:`.contract` says and add its line to ``SAMPLERS``; ``sampler=NAME`` then
selects it. From outside the package, ``SAMPLERS["name"] = Sampler("name", function, Diffusion)`` does the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.noise_process import Diffusion, MeanFlow, Process, RectifiedFlow
from mmldm_scale.diffusion.samplers.contract import Predict
from mmldm_scale.diffusion.samplers.ddim import ddim
from mmldm_scale.diffusion.samplers.euler import euler
from mmldm_scale.diffusion.samplers.multistep import dpm_solver_pp, unipc

P = TypeVar("P", Diffusion, RectifiedFlow, MeanFlow)


@dataclass(frozen=True)
class Sampler(Generic[P]):
    """A sampler's function and what it takes. Called, it checks its arguments and samples."""

    name: str
    function: Callable[[Predict, Tensor, P, int], Tensor]  # as :mod:`.contract` says
    process: type[P]  # the noise process, and so the predictions, that the function knows how to sample
    needs_divisor: bool = False  # whether steps must divide the number of timesteps of the noise schedule

    def __call__(self, predict: Predict, noise: Tensor, process: Process, steps: int) -> Tensor:
        """Return the latents, shaped like ``noise`` (B, …), that ``noise`` leads to in ``steps`` steps.

        Raises:
            UserError: the process or the number of steps does not fit the sampler.
        """
        return self.function(predict, noise, self.check(process, steps), steps)

    def check(self, process: Process, steps: int, prefix: str = "") -> P:
        """Return ``process``, or raise UserError if it or ``steps`` does not fit the sampler.

        Messages name the configuration keys ``{prefix}sampler`` and ``{prefix}steps``.
        """
        if not isinstance(process, self.process):
            needed, actual = " or ".join(self.process.predictions), process.config.prediction
            allowed = ", ".join(_fitting(process))
            raise UserError(f"{prefix}sampler: {self.name} needs prediction={needed}, not {actual}; allowed: {allowed}")
        if steps < 1:
            raise UserError(f"{prefix}steps: {steps}: must be at least 1")
        if self.needs_divisor and process.length % steps:
            divisors = [n for n in range(1, process.length + 1) if process.length % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - steps))[:2])
            raise UserError(
                f"{prefix}steps: {steps} does not divide the {process.length} timesteps of the noise schedule, as "
                f"sampler={self.name} needs; the nearest allowed are {near[0]} and {near[1]}"
            )
        return process


SAMPLERS: dict[str, Sampler[Any]] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", ddim, Diffusion, needs_divisor=True),
        Sampler("mean_flow", euler, MeanFlow, needs_divisor=True),  # along average velocities, see guided_sampling
        Sampler("euler", euler, RectifiedFlow, needs_divisor=True),
        Sampler("dpm++", dpm_solver_pp, Diffusion),
        Sampler("unipc", unipc, Diffusion),
    )
}


def get_sampler(name: str, process: Process, steps: int, prefix: str = "") -> Sampler[Any]:
    """Return the sampler ``name``, checked to fit; "auto" is the first in the table that fits ``process``.

    It loads no weights: call it early to refuse a configuration before anything is loaded.

    Raises:
        UserError: no sampler has this name, or process or steps do not fit it; see :meth:`Sampler.check`.
    """
    fitting = _fitting(process)
    if name == "auto":
        name = fitting[0]
    if name not in SAMPLERS:
        raise UserError(f"{prefix}sampler: {name!r} is unknown; allowed: {', '.join(fitting)}")
    SAMPLERS[name].check(process, steps, prefix)
    return SAMPLERS[name]


def _fitting(process: Process) -> list[str]:
    """Return the names of the samplers that take ``process``."""
    return [sampler.name for sampler in SAMPLERS.values() if isinstance(process, sampler.process)]
