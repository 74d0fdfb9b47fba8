"""A user study in the browser: ``mmldm rate serve`` asks raters, ``mmldm rate report`` evaluates their votes.

``study`` says what is rated, ``plan`` which rater is asked what in which order, ``store`` keeps the votes, ``server``
has the pages, ``figures`` and ``report`` what they amount to.
"""
