"""How smoothly the page of ``nispa play`` moves while a task is taught, in headless Chromium.

    python -m benchmarks.play_frames
    python -m benchmarks.play_frames --tasks 2 --hidden 400

The page asks for every frame that the browser can show, and notes the time between two of them and
how long the page's own drawing took. One JSON line is printed, of frames in which something was
drawn, from the moment that the first task is taught until the last is learned. The server teaches
on the same machine. Chromium draws with the processor alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from tests.webpage.test_browser import Browser, chromium

from nispa.serve.classroom import Classroom
from nispa.serve.gate import Door
from nispa.serve.play_app import application
from nispa.serve.running import LOCAL, bound

WATCH = """
(() => {
  const network = nispaPlay.network, drawn = network.drawNow.bind(network);
  const seen = window.seen = { between: [], drawing: [] };
  let last = 0, took = 0;
  network.drawNow = (now) => {
    const begin = performance.now();
    drawn(now);
    took += performance.now() - begin;
  };
  const tick = (now) => {
    if (last && took) { seen.between.push(now - last); seen.drawing.push(took); }
    last = now; took = 0;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
})()
"""
KEYS = ("digits-0-to-4", "digits-5-to-9", "digits-0-to-4-turned")
LEARNED = "document.querySelectorAll('#accuracy td[data-learner=nispa]').length"
BUSY = "/being learned/.test(document.querySelector('#tasks').textContent)"
PATIENCE_S = 900


@contextmanager
def page(hidden: int, width: int) -> Iterator[Browser]:
    """The page of a class with three layers of some units."""
    room = Classroom(hidden=(hidden,) * 3)
    app, closing = application(room, Door(LOCAL, None))
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as browser:
            for part in ("Page", "Runtime"):
                browser.call(f"{part}.enable")
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            port = listening.getsockname()[1]
            browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
            browser.wait_for("Page.loadEventFired")
            wait(browser, "typeof nispaPlay !== 'undefined' && nispaPlay.network.blocks")
            wait(browser, "document.querySelectorAll('#tasks button').length >= 4")
            yield browser
    finally:
        closing.set()
        server.should_exit = True
        thread.join()
        listening.close()


def wait(browser: Browser, code: str) -> None:
    """Until something is so on the page."""
    until = time.monotonic() + PATIENCE_S
    while not browser.value(f"Boolean({code})"):
        assert time.monotonic() < until, code
        time.sleep(0.2)


def measure(hidden: int, tasks: int, width: int) -> dict[str, Any]:
    """Milliseconds between frames, and of drawing, while tasks are taught."""
    with page(hidden, width) as browser:
        browser.value(WATCH)
        begun = time.monotonic()
        for number, key in enumerate(KEYS[:tasks], start=1):
            browser.value(f"document.querySelector('[data-key={key}]').click()")
            wait(browser, f"{LEARNED} >= {number} && !({BUSY})")
        seconds = time.monotonic() - begun
        seen = browser.value("seen")
    return {
        "units": 3 * hidden,
        "width": width,
        "tasks": tasks,
        "seconds": round(seconds, 1),
        "frames_drawn": len(seen["drawing"]),
        "between_frames_ms": percentiles(seen["between"]),
        "drawing_ms": percentiles(seen["drawing"]),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "busy": [round(value, 1) for value in os.getloadavg()] if os.name == "posix" else None,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and the most."""
    middle, high = np.percentile(values, (50, 95)).round(1).tolist()
    return {"median": middle, "p95": high, "max": round(max(values), 1)}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=400, help="units of each of three layers")
    parser.add_argument("--tasks", type=int, default=1, choices=range(1, len(KEYS) + 1))
    parser.add_argument("--width", type=int, default=1300, help="of the page, in pixels")
    options = parser.parse_args(given)
    print(json.dumps(measure(options.hidden, options.tasks, options.width)))


if __name__ == "__main__":
    main()
