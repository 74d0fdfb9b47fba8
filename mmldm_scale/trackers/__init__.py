"""Experiment trackers (W&B, SwanLab, trackio, MLflow): ``mmldm follow`` sends them what a run logs.

The training knows no tracker: it writes ``log.jsonl`` and previews, and another process follows these files. A tracker
is a function that opens a :class:`~mmldm_scale.trackers.contract.Tracker`, in a file of its own and with a line in
:mod:`~mmldm_scale.trackers.table`.
"""
