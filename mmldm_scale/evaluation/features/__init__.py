"""Features of clip sets, in files of fixed blocks that any number of jobs make together."""
