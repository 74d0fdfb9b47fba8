"""``mmldm memorisation``: samples that are closer to a training clip than other real clips are."""
