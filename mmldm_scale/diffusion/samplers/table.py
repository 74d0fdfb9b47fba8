"""The table of samplers by name, and which noise processes each of them takes.

To add a sampler, write a function as :mod:`.contract` says and add its line to ``SAMPLERS``; ``sampler=NAME`` then
selects it. From outside the package, ``SAMPLERS["name"] = Sampler("name", function, Diffusion)`` does the same. The
last argument is the process that it takes: ``Diffusion``, ``RectifiedFlow``, or ``Process`` for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, get_args

from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.noise_process import Diffusion, Process, RectifiedFlow
from mmldm_scale.diffusion.samplers.contract import Predict
from mmldm_scale.diffusion.samplers.ddim import ddim
from mmldm_scale.diffusion.samplers.euler import euler
from mmldm_scale.diffusion.samplers.multistep import dpm_solver_pp, unipc


@dataclass(frozen=True)
class Sampler:
    """A sampler's function and what it takes. Called, it checks its arguments and samples."""

    name: str
    function: Callable[[Predict, Tensor, Any, int], Tensor]  # as :mod:`.contract` says
    process: type[Process] | UnionType  # the noise process, and so the predictions, that the function can sample

    def __call__(self, predict: Predict, noise: Tensor, process: Process, steps: int) -> Tensor:
        """Return the latents, shaped like ``noise`` (B, …), that ``noise`` leads to in ``steps`` steps.

        Raises:
            UserError: the process or the number of steps does not fit the sampler.
        """
        self.check(process, steps)
        return self.function(predict, noise, process, steps)

    def check(self, process: Process, steps: int, prefix: str = "") -> None:
        """Raise UserError if ``process`` or ``steps`` does not fit the sampler.

        Messages name the configuration keys ``{prefix}sampler`` and ``{prefix}steps``.
        """
        if not isinstance(process, self.process):
            kinds: tuple[type[Process], ...] = get_args(self.process) or (self.process,)
            needed = " or ".join(name for kind in kinds for name in kind.predictions)
            actual, allowed = process.config.prediction, ", ".join(_fitting(process))
            raise UserError(f"{prefix}sampler: {self.name} needs prediction={needed}, not {actual}; allowed: {allowed}")
        if not 1 <= steps <= process.length:
            limit = f"the number of timesteps of the noise schedule, {process.length}"
            raise UserError(f"{prefix}steps: {steps}: must be from 1 to {limit}")


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", ddim, Diffusion),
        Sampler("euler", euler, RectifiedFlow),
        Sampler("dpm++", dpm_solver_pp, Process),
        Sampler("unipc", unipc, Process),
    )
}


def get_sampler(name: str, process: Process, steps: int, prefix: str = "") -> Sampler:
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
