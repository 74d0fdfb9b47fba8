"""The synthetic benchmark: do picture and sound of samples fit each other, measured without any pretrained network.

Models trained on the procedural corpus (``data_tools/demo/corpus.py``) are measured on their samples alone, which have
no truth: ``picture.py`` finds hits and class in the frames, ``sound.py`` in the waveform, ``agreement.py`` compares the
two, ``benchmark.py`` sets samples beside clips of the corpus and the same clips with shuffled sounds.
docs/synthetic_benchmark.md has what the detectors say where the truth is known.
"""
