"""NISPA's decisions: pure functions on topology and boolean tensors.

No optimiser, no printing, no data set. ``schedule`` decides how much activation to keep, ``select``
which units carry it, ``rewire`` and ``grow`` which connections live.
"""
