"""Timings: ratios of things measured in turn in one run, medians of several."""
