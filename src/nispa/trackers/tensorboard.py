"""TensorBoard: event files in the run's folder; read them with ``tensorboard --logdir``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from nispa.files import shown
from nispa.runs.curve import Point
from nispa.runs.record import Record
from nispa.trackers.base import Opened, final_metrics, settings_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Writes scalars over samples trained; settings as a text, and as HPARAMS at the end."""

    name = "tensorboard"

    def __init__(self) -> None:
        from torch.utils import tensorboard

        self._open = tensorboard.SummaryWriter
        self._writer: SummaryWriter
        self._last = 0

    def begin(self, record: Record, folder: Path, known: str | None) -> Opened:
        """Opens a new event file, beside those of earlier parts; see :class:`Tracker`."""
        _await_new_second(folder / FOLDER)
        self._writer = self._open(str(folder / FOLDER))
        if known is None:
            rows = "".join(f"| {key} | {value} |\n" for key, value in settings_of(record).items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
            self._writer.flush()
        return Opened(FOLDER, f"tensorboard --logdir {shown(folder)}")

    def log(self, point: Point) -> None:
        """Writes a point's values; see :class:`Tracker`."""
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step, point.seconds)
        self._writer.flush()  # visible at once, and not lost if the process dies
        self._last = point.step

    def end(self, record: Record) -> None:
        """Closes the file; see :class:`Tracker`."""
        if record.status == "complete":
            settings = {
                key: value for key, value in settings_of(record).items() if value is not None
            }
            self._writer.add_hparams(
                settings, final_metrics(record), run_name=".", global_step=self._last
            )
        self._writer.close()


def _await_new_second(folder: Path) -> None:
    """Waits up to a second, so that a new event file's name sorts after those in ``folder``.

    TensorBoard reads event files by name. Names begin with the second of creation; two files of
    the same second would be in the arbitrary order of their process numbers.
    """
    now = int(time.time())
    if any(folder.glob(f"events.out.tfevents.{now:010d}.*")):
        while int(time.time()) == now:
            time.sleep(0.01)
