"""Data preparation: from folders of videos to shard sets. ``python data_tools/shard.py --help`` is the way in."""
