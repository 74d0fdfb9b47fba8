"""Shard sets: folders of plain WebDataset tars, with an index for each tar and one manifest.

A set contains ``plan.json`` (the work list, written first), ``shard-000000.tar`` and its index ``shard-000000.json``,
…, ``dropped.jsonl`` (the candidates that were dropped, with reasons) and ``manifest.json``, written last: a set without
it is unfinished. A shard exists if and only if its index exists; one without samples has no tar. Any WebDataset reader
can read the tars; indexes and manifest add random access, checksums and the origin of the set.
"""
