"""How anything is trained: the loop, and what it needs of DeepSpeed, checkpoints, data and monitoring."""
