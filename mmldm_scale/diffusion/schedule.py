"""The noise schedule of diffusion, shared by audio and video, as diffusers' DDIM scheduler (sections 3.2 and 4.1).

Training uses its ``add_noise`` (Eq. 5 and 6), sampling its ``step`` with η = 0. Eq. 6 as printed lacks a square root:
what is meant, and computed here, is z^t = √ᾱ_t · z^0 + √(1 − ᾱ_t) · n^t, the sample of Eq. 5. Besides DDIM there are
two solvers of second order, which need far fewer steps.
"""

from typing import Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig

Solver = DPMSolverMultistepScheduler | UniPCMultistepScheduler
SOLVERS: dict[str, type[Solver]] = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


def scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """Return the schedule: √β_t linear from √beta_start to √beta_end ("scaled linear"), no clipping.

    Sampling visits every (steps / n)-th timestep from the last one down ("trailing") and ends at clean latents. With
    ``zero_terminal_snr``, √ᾱ_t is shifted and scaled so that it is 0 at the last timestep and as before at the first.
    """
    return DDIMScheduler(
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def timesteps(schedule: DDIMScheduler, steps: int) -> torch.Tensor:
    """Set ``schedule`` to ``steps`` sampling steps and return their timesteps (steps,), noisiest first.

    Raises:
        UserError: ``steps`` does not divide the schedule's length: DDIM would step to timesteps that it then does
            not visit.
    """
    stride(schedule.config.num_train_timesteps, steps)
    schedule.set_timesteps(steps)
    return schedule.timesteps


def stride(length: int, steps: int) -> int:
    """Return how many of ``length`` timesteps each of ``steps`` sampling steps takes; raise UserError if uneven."""
    if length % steps:
        fitting = [n for n in range(1, length + 1) if length % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(n - steps))[:2])
        raise UserError(
            f"steps: {steps} does not divide the {length} steps of the noise schedule; {near[0]} or {near[1]} fits"
        )
    return length // steps


def solver(config: DiffusionConfig, name: Literal["dpm++", "unipc"], steps: int) -> Solver:
    """Return a multistep solver of the schedule's probability flow, set to ``steps`` ≥ 1 steps, for one use.

    DPM-Solver++ (2M, arXiv 2211.01095) or UniPC (arXiv 2302.04867), of order 2, ending at clean latents. Steps are
    even in the logarithm of the signal-to-noise ratio, from the schedule's last timestep to its first: evenly spaced
    timesteps would leave much noise to the leap to none at the end, which is of first order and spoils the others.
    """
    made = SOLVERS[name](
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        solver_order=2,
        use_exponential_sigmas=True,
        final_sigmas_type="zero",
    )
    made.set_timesteps(steps)
    levels = (1 / made.alphas_cumprod - 1).log()  # (T,) of the noise-to-signal ratio at each timestep
    wanted = made.sigmas[:-1].square().log()  # (steps,)
    made.timesteps = (wanted[:, None] - levels).abs().argmin(dim=1)  # the library rounds them all down
    made.set_begin_index(0)  # of many steps some share a timestep, so that the first cannot be found by its own
    return made
