"""Runs that are done: found, compared, drawn, exported."""
