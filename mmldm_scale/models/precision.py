"""The precisions of the configuration as torch data types: ``DTYPES[config.training.precision]``."""

import torch

from mmldm_scale.config import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
