"""NISPA's decisions: pure functions on topology and boolean tensors.

No optimiser, no printing, no data set. ``schedule`` says how much to keep, ``activity`` what units
did, ``select`` which units to keep, ``rewire`` and ``grow`` which connections live.
"""
