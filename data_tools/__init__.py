"""Data preparation: from folders of videos to shard sets.

``python data_tools/shard.py --help`` is the way in from a clone, ``mmldm shard --help`` from an installed wheel. A
wheel holds this folder as ``mmldm_data_tools``, a clone as ``data_tools``: therefore all imports here are relative.
"""

_INSTALLED = __name__ == "mmldm_data_tools"
PROGRAM = "mmldm shard" if _INSTALLED else "shard.py"  # how messages call the command
COMMAND = PROGRAM if _INSTALLED else "python data_tools/shard.py"  # what a user types
