"""Sets of clips to evaluate: folders of videos, frames and sound, WebDataset tars. ``clip_set.py`` has the contract."""
