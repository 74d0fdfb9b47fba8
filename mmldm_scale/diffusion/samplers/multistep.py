"""Two solvers of second order, DPM-Solver++ (2M, arXiv 2211.01095) and UniPC (arXiv 2302.04867), as diffusers has them.

They reuse the predictions of earlier steps and need far fewer steps than DDIM or Euler's method. The diffusers
scheduler, which remembers those predictions, is made anew in each call. diffusers is imported there: it takes seconds,
and a training that draws no samples does without.
"""

from typing import Any

import torch
from torch import Tensor

from mmldm_scale.diffusion.noise_process import Diffusion, Process, RectifiedFlow
from mmldm_scale.diffusion.samplers.contract import Predict, even_intervals

# The share of noise at which a flow begins: at 1 the signal-to-noise ratio has no logarithm (as diffusers' UniPC does).
MOST_NOISE = 1 - 1e-6


def dpm_solver_pp(predict: Predict, noise: Tensor, process: Process, steps: int) -> Tensor:
    """Return the latents (B, ...) that ``noise`` (B, ...) leads to by DPM-Solver++; see :mod:`.contract`."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return _sample(DPMSolverMultistepScheduler, predict, noise, process, steps)


def unipc(predict: Predict, noise: Tensor, process: Process, steps: int) -> Tensor:
    """Return the latents (B, ...) that ``noise`` (B, ...) leads to by UniPC; see :mod:`.contract`."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return _sample(UniPCMultistepScheduler, predict, noise, process, steps)


def _sample(scheduler_class: Any, predict: Predict, noise: Tensor, process: Process, steps: int) -> Tensor:
    if isinstance(process, RectifiedFlow):
        scheduler = _flow_scheduler(scheduler_class, process, steps)
    else:
        scheduler = _diffusion_scheduler(scheduler_class, process, steps)
    latents = noise
    for time in scheduler.timesteps.tolist():
        latents = scheduler.step(predict(latents, time), time, latents, return_dict=False)[0]
    return latents


def _diffusion_scheduler(scheduler_class: Any, process: Diffusion, steps: int) -> Any:
    """Return a scheduler of order 2 for ``steps`` steps, for one use, ending at clean latents.

    Steps are even in the logarithm of the signal-to-noise ratio, from the schedule's last timestep to its first: evenly
    spaced timesteps would leave much noise to the last step to clean latents, which is of first order and would
    spoil the others.
    """
    config = process.config
    scheduler = scheduler_class(
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=config.zero_terminal_snr,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[config.prediction],
        solver_order=2,
        use_exponential_sigmas=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    log_noise_to_signal = (1 / scheduler.alphas_cumprod - 1).log()  # (T,)
    of_steps = scheduler.sigmas[:-1].square().log()  # (steps,)
    # The nearest timestep of each step; the library rounds them all down.
    scheduler.timesteps = (of_steps[:, None] - log_noise_to_signal).abs().argmin(dim=1)
    scheduler.set_begin_index(0)  # many steps share timesteps, so that the library could not look up the first
    return scheduler


def _flow_scheduler(scheduler_class: Any, process: RectifiedFlow, steps: int) -> Any:
    """Return a scheduler of order 2 for ``steps`` steps along a flow, for one use, ending at clean latents.

    It visits the timesteps that Euler's method visits, evenly spaced, and takes their own shares of noise. Those of the
    library begin at 1 − 1/T, where the flow does not begin, which leaves an error that more steps do not lower.
    """
    scheduler = scheduler_class(
        num_train_timesteps=process.length,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    times = [time for time, _ in even_intervals(process.length, steps)]
    scheduler.timesteps = torch.tensor(times)
    scheduler.sigmas = torch.tensor([*(min((time + 1) / process.length, MOST_NOISE) for time in times), 0.0])
    scheduler.set_begin_index(0)  # the library would look it up by a timestep of its own
    return scheduler
