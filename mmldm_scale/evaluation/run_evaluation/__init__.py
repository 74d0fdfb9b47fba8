"""``mmldm evaluate-run``: samples from the checkpoints of a run, while it trains or afterwards, and measures them."""
