"""Samplers: functions from noise to latents, without state, in one table.

    sampler = get_sampler("auto", process, steps)         # UserError if the name, the process or the steps do not fit
    latents = sampler(predict, noise, process, steps)     # predict(latents, time) calls the network

:mod:`.table` holds the table; each other module holds one sampler or a family of them.
"""

from mmldm_scale.diffusion.samplers.contract import Predict
from mmldm_scale.diffusion.samplers.table import SAMPLERS, Sampler, get_sampler

__all__ = ["SAMPLERS", "Predict", "Sampler", "get_sampler"]
