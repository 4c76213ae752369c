"""The process that learns one task: ``python -m nispa.serve.learning FOLDER``.

The folder holds ``before.safetensors``, ``images.npy`` and ``task.json``; the process adds
``after.safetensors``. It writes a line of JSON for each event and for how it ended, and ends at
once when the server is gone, which closes its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from nispa.errors import NispaError
from nispa.learner import Learner
from nispa.methods.base import Event, PhaseEnd, PhaseStart
from nispa.serve.jobs import AFTER, BEFORE, IMAGES, TASK
from nispa.training.pausing import EpochEnd

POLITE = 10  # added to the process's niceness, so that answers come first


def main(folder: Path) -> None:
    """Learns the task in a folder."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not mix with our lines
    threading.Thread(target=_end_with_server, daemon=True).start()
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(POLITE)
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    try:
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            _learn(folder, task, out)
        say(out, {"ended": "learned", "notes": [str(each.message) for each in met]})
    except NispaError as error:
        say(out, {"ended": "failed", "error": str(error)})


def _learn(folder: Path, task: dict[str, Any], out: TextIO) -> None:
    learner = Learner.load(folder / BEFORE, device=task["device"], model=task["model"])
    images = np.load(folder / IMAGES, allow_pickle=False)
    learner.learn(
        images,
        np.array(task["labels"]),
        channels_first=task["channels_first"],
        watch=lambda event: say(out, told(event)),
        progress=False,
        name=task["name"],
    )
    learner.save(folder / AFTER)


def told(event: Event) -> dict[str, Any]:
    """An event in JSON values."""
    if isinstance(event, PhaseStart):
        return {"phase": event.phase, "phases_at_most": event.phases, "epoch": 0}
    if isinstance(event, EpochEnd):
        return {"epoch": event.epoch, "validation_accuracy": event.validation_accuracy}
    assert isinstance(event, PhaseEnd)
    return {"phase": event.phase, "validation_accuracy": event.accuracy}


def say(out: TextIO, values: dict[str, Any]) -> None:
    """Writes one line of JSON."""
    out.write(json.dumps(values) + "\n")
    out.flush()


def _end_with_server() -> None:
    """Ends this process when standard input is closed."""
    while sys.stdin.buffer.read(65_536):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
