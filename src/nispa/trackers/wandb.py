"""Weights & Biases: a run in ``WANDB_PROJECT``; ``WANDB_MODE=offline`` keeps it on the machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from nispa.errors import ConfigError
from nispa.runs.curve import Point
from nispa.runs.record import Record
from nispa.trackers.base import Opened, final_metrics, settings_of

DEFAULTS = {
    "WANDB_SILENT": "true",  # no output and no questions
    "WANDB_ERROR_REPORTING": "false",
}
QUIET: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "init_timeout": 30.0,  # seconds, so that a lost network does not delay a run
    "finish_timeout": 60.0,
    "stop_on_fatal_error": False,
    "stop_fn": lambda: None,  # the default lets a button on the web page send Ctrl-C
}
"""Settings that make it send the curve only; those unknown to the installed version are dropped."""


class WandB:
    """Logs a history over samples trained, settings as config, last metrics as ``final/…``."""

    name = "wandb"

    def __init__(self) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        import wandb

        self._wandb: Any = wandb
        self._run: Any = None
        if wandb.setup().settings.mode == "online" and not self._logged_in():
            raise ConfigError(
                "tracker 'wandb' has no API key; set WANDB_API_KEY or call: wandb login; or set "
                "WANDB_MODE=offline to keep the run on this machine"
            )

    def _logged_in(self) -> bool:
        try:
            return bool(self._wandb.login(verify=False))
        except self._wandb.Error:  # it cannot ask for a key without a terminal
            return False

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        """Creates a run with its config, or reopens it; see :class:`Tracker`."""
        wandb = self._wandb
        fields = wandb.Settings.model_fields
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "nispa",
            id=known or secrets.token_hex(8),
            resume="allow",
            name=folder.resolve().name,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            config=settings_of(record),
            settings=wandb.Settings(**{key: QUIET[key] for key in QUIET if key in fields}),
        )
        self._run.define_metric("train/samples", hidden=True)
        self._run.define_metric("*", step_metric="train/samples")
        return Opened(self._run.id, self._run.url or f"run {self._run.id}, on this machine")

    def log(self, point: Point) -> None:
        """Sends a point's values as one row; see :class:`Tracker`."""
        self._run.log({**point.values, "train/samples": point.step}, step=point.number)

    def end(self, record: Record) -> None:
        """Sends the last metrics and waits for the upload; see :class:`Tracker`."""
        complete = record.status == "complete"
        if complete:
            self._run.summary.update(final_metrics(record))
        self._run.finish(exit_code=0 if complete else 1)
