"""``mmldm doctor``: is everything in order here for what is to run? One line for each thing looked at.

Each module looks after one subject; a check is a plain function that yields findings. ``examination.py`` chooses the
checks, gives each its time and puts together what all ranks found.
"""
