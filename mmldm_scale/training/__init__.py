"""Training with DeepSpeed: what must be settled before DeepSpeed is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it searches for a GPU and warns that there is none
