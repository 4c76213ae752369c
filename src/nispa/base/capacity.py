"""When a layer of units counts as nearly full."""

NEARLY = 0.1
"""At most this share of its units is plastic."""
