"""What every method must do when it is taken up by another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nispa.methods import METHODS
from nispa.methods.saving import decode, encode

from .test_contract import settings_of, story
from .toy import toy_method

GO_ON = """
import sys
from pathlib import Path
import pytest
import torch
torch.set_num_threads(1)
from nispa.methods.saving import decode, encode
from tests.methods.toy import finish, toy_task
for path in Path(sys.argv[1]).glob("*.safetensors"):
    method, settings, _ = decode(path)
    finish(method.learn(toy_task(2)))
    path.with_suffix(".after").write_bytes(encode(method, settings))
"""
# The network's density of stl-iso is already divided; tests/test_learner.py covers it.
SAVED = [name for name in METHODS if name != "stl-iso"]


def test_saved_and_loaded_in_a_new_process_each_method_goes_on_identically(tmp_path: Path) -> None:
    """One process for all: to begin one takes longer than to learn."""
    expected = {}
    for name in SAVED:
        _, steps = story(name)
        (tmp_path / f"{name}.safetensors").write_bytes(steps[1].file)
        expected[name] = steps[2].file
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", GO_ON, str(tmp_path)], check=True, cwd=root)
    found = {name: (tmp_path / f"{name}.after").read_bytes() for name in SAVED}
    assert [name for name in SAVED if found[name] != expected[name]] == []


@pytest.mark.parametrize("name", SAVED)
def test_saved_before_the_first_task_it_is_loaded_as_it_was(name: str, tmp_path: Path) -> None:
    method = toy_method(name)
    method.start()
    content = encode(method, settings_of(method))
    (tmp_path / "new.safetensors").write_bytes(content)
    again, settings, _ = decode(tmp_path / "new.safetensors")
    assert encode(again, settings) == content
