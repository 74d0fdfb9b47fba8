"""Sets of clips to evaluate: folders of videos, frames and sound, WebDataset tars. ``clip_set.py`` has the contract.

``open_clip_set(path)`` opens a set of any kind, which it recognises by what the folder contains.
"""

from mmldm_scale.evaluation.clip_sets.opening import open_clip_set

__all__ = ["open_clip_set"]
