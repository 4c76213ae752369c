from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CHOICES = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
WAYS_IN = [
    "import nispa; nispa.Learner",
    "from nispa import Learner",
    "from nispa.runs.runner import run",
    "from nispa.cli import cli; cli.main(['doctor'])",
]


def in_process(code: str, **given: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in CHOICES}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | given | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def spins(code: str, **given: str) -> str:
    """How often a waiting thread of PyTorch's OpenMP looks before it sleeps, as the latter says."""
    found = re.search(r"GOMP_SPINCOUNT = '([^']*)'", in_process(code, **given).stderr)
    if found is None:
        pytest.skip("PyTorch's OpenMP here is not GNU's")
    return found[1]


@pytest.mark.parametrize("way", WAYS_IN)
def test_waiting_threads_soon_leave_their_core_to_others(way: str) -> None:
    assert spins(way) == "1000"


def test_importing_nispa_changes_nothing() -> None:
    code = "import os; before = dict(os.environ); import nispa; print(before == dict(os.environ))"
    assert in_process(code).stdout == "True\n"
    plain = spins("import nispa, torch")
    assert int(plain) > 1000 if plain.isdecimal() else plain.lower() == "infinite"


def test_the_users_choice_how_threads_wait_stays() -> None:
    way = WAYS_IN[0]
    assert spins(way, GOMP_SPINCOUNT="7") == "7"
    passive = spins("import torch", OMP_WAIT_POLICY="passive")
    assert spins(way, OMP_WAIT_POLICY="passive") == passive != "1000"


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import nispa", {"nispa"}),
        ("from nispa.cli import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass",
         {"nispa", "click"}),
    ],
)  # fmt: skip
def test_what_answers_at_once_imports_hardly_anything(code: str, allowed: set[str]) -> None:
    show = "print(*{name.partition('.')[0] for name in sys.modules} - before)"
    begin = "import sys; before = {name.partition('.')[0] for name in sys.modules}"
    ended = in_process(f"{begin}\n{code}\n{show}")
    found = set(ended.stdout.splitlines()[-1].split()) - sys.stdlib_module_names
    assert {name for name in found if not name.startswith("_")} <= allowed
