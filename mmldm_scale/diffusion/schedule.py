"""The noise schedule as diffusers' schedulers, with which programs that know diffusers can sample.

An exported model carries what :func:`diffusers_scheduler` returns. Training and sampling here compute the same numbers
by :func:`~mmldm_scale.diffusion.noise_process.alphas_cumprod`: to import diffusers takes seconds.
"""

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from mmldm_scale.config import DiffusionConfig


def scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """Return the schedule of sections 3.2 and 4.1: √β_t linear from √beta_start to √beta_end, without clipping.

    In diffusers, sampling with it visits every (steps / n)-th timestep from the last one down ("trailing") and ends at
    clean latents. With ``zero_terminal_snr``, √ᾱ_t is shifted and scaled so that it is 0 at the last timestep and
    unchanged at the first (arXiv 2305.08891, Algorithm 1).
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


def diffusers_scheduler(config: DiffusionConfig) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """Return the diffusers scheduler that samples a network trained with ``config``.

    The timesteps of a flow's scheduler are T · s, one more than those of
    :class:`~mmldm_scale.diffusion.noise_process.RectifiedFlow`.
    """
    if config.prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.steps)
    return scheduler(config)
