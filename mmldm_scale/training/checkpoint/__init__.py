"""Checkpoints of a run: written, verified, loaded and exported."""

from mmldm_scale.training import engine as engine  # it sets DeepSpeed's environment, before a file here imports that
