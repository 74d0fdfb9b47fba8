"""``mmldm doctor``: checks the machine, the environment and the data before a training, one line for each result.

Each module checks one subject; a check is a function that yields findings. ``examination.py`` chooses the checks, runs
each with a time limit and merges the findings of all ranks.
"""
