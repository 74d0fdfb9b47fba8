"""DeepSpeed's engine and the processes of a run. What DeepSpeed reads from the environment is set here, before it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for a GPU and warns that there is none
