"""Entries of a record that no whole run shows."""

from __future__ import annotations

import torch

from nispa.runs.recording import environment


def test_the_environment_names_the_device() -> None:
    assert environment().device == "cpu"
    assert environment(torch.device("meta")).device == "meta"
