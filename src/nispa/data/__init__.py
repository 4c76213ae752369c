"""Data sets and scenarios: get, verify and cut images into a sequence of tasks."""
