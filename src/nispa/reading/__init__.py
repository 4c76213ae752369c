"""Read finished runs: find, group, compare, draw, export, import."""
