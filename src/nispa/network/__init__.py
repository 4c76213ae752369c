"""Sparse networks: units, connections, layers, and the values they compute."""
