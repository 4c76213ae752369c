from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


def spins(code: str, **given: str) -> str:
    """How often a waiting thread of PyTorch's OpenMP looks before it sleeps, as the latter says."""
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | given | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"GOMP_SPINCOUNT = '([^']*)'", done.stderr)
    if found is None:
        pytest.skip("PyTorch's OpenMP here is not GNU's")
    return found[1]


def test_waiting_threads_soon_leave_their_core_to_others() -> None:
    assert spins("import nispa, torch") == "1000"
    assert int(spins("import torch")) > 1000 or spins("import torch").lower() == "infinite"


def test_the_users_choice_how_threads_wait_stays() -> None:
    assert spins("import nispa, torch", GOMP_SPINCOUNT="7") == "7"
    passive = spins("import torch", OMP_WAIT_POLICY="passive")
    assert spins("import nispa, torch", OMP_WAIT_POLICY="passive") == passive != "1000"
