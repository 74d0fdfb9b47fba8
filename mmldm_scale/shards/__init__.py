"""Shard sets: folders of plain WebDataset tars with an index beside each tar and a manifest over all of them.

A set holds ``plan.json`` (the work list, written first), ``shard-000000.tar`` and ``shard-000000.json`` (its index),
…, ``dropped.jsonl`` (what was left out, and why) and ``manifest.json`` (written last: a set without it is unfinished).
A shard exists if and only if its index does. The tars hold nothing private, so any WebDataset reader reads them; the
indexes and the manifest add random access, checksums and the set's origin.
"""
