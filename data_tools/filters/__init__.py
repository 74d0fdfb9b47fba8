"""Which videos are good enough: every candidate is measured once, and selections are cut from the measures.

``measure`` decodes (:mod:`.stages.measure`); ``select`` only reads its table, so that thresholds over two
million candidates can be tried in seconds (:mod:`.stages.select`).
"""
