"""Steady predictions from `nispa serve` while it learns: how many are lost, changed or late.

    python -m benchmarks.serve_load --rate 200
    python -m benchmarks.serve_load --rate 200 --tasks 1 --settings hidden=40,40 max_phases=3

A learner of scikit-learn's digits 0 and 1 is served by a process of its own. Requests leave at
fixed times, whether or not earlier ones were answered, from before the first task is taught until
all are learned. Each reply is compared, byte for byte, with the first one to the same image. A
request's time counts from when it was to leave. One JSON line is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import nispa

CONNECTIONS = 16
IMAGES = 50
CALM_S = 2.0  # before the first task is taught and after the last is learned


@dataclass
class Tally:
    """What became of the requests."""

    waits: list[float] = field(default_factory=list)
    lost: int = 0
    changed: int = 0


class Connection:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        told = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", told)
        assert length, told
        return int(told.split()[1]), await reader.readexactly(int(length[1]))

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def load(port: int, rate: float, tasks: list[bytes], bodies: list[bytes]) -> dict[str, Any]:
    """Sends requests until the tasks are learned."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(port))
    first: dict[int, bytes] = {}
    tally, going = Tally(), True

    async def one(number: int, due: float) -> None:
        connection = await free.get()
        try:
            place = number % len(bodies)
            status, reply = await connection.ask("POST", "/predict?task=1&top=2", bodies[place])
            tally.waits.append(time.perf_counter() - due)
            tally.lost += status != 200
            tally.changed += first.setdefault(place, reply) != reply
        except (OSError, EOFError, ValueError):
            tally.lost += 1
            connection.close()
        finally:
            free.put_nowait(connection)

    async def steady() -> tuple[int, float]:
        begin, number, running = time.perf_counter(), 0, set()
        while going:
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            job = asyncio.ensure_future(one(number, due))
            running.add(job)
            job.add_done_callback(running.discard)
            number += 1
        await asyncio.gather(*running)
        return number, time.perf_counter() - begin

    sending = asyncio.ensure_future(steady())
    teacher, jobs = Connection(port), []
    await asyncio.sleep(CALM_S)
    for body in tasks:
        status, reply = await teacher.ask("POST", "/tasks", body)
        assert status == 202, reply
        number = json.loads(reply)["job"]
        while True:
            await asyncio.sleep(0.25)
            job = json.loads((await teacher.ask("GET", f"/jobs/{number}"))[1])
            if job["state"] in ("learned", "failed", "dropped"):
                break
        assert job["state"] == "learned", job
        jobs.append(job)
    await asyncio.sleep(CALM_S)
    going = False
    sent, seconds = await sending
    waits = np.array(tally.waits) * 1000
    low, middle, high = np.percentile(waits, (50, 95, 99)).round(2).tolist()
    return {
        "sent": sent,
        "answered_per_s": round((sent - tally.lost) / seconds, 1),
        "lost": tally.lost,
        "changed": tally.changed,
        "ms": {"median": low, "p95": middle, "p99": high, "max": round(float(waits.max()), 1)},
        "learning_s": [job["seconds"] for job in jobs],
        "old_answers_unchanged": all(job["old_answers"]["unchanged"] for job in jobs),
        "logits_compared": [job["old_answers"]["logits_compared"] for job in jobs],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "busy": [round(value, 1) for value in os.getloadavg()] if os.name == "posix" else None,
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--tasks", type=int, default=3, choices=range(1, 5))
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(given)
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)

    def pair(task: int) -> tuple[Any, Any]:
        chosen = np.isin(digits.target, (2 * task, 2 * task + 1))
        return images[chosen], digits.target[chosen]

    settings: dict[str, Any] = dict(each.split("=", 1) for each in options.settings)
    learner = nispa.Learner(input_shape=(1, 8, 8), classes=10, seed=0, **settings)
    learner.learn(*pair(0), name="0 and 1", progress=False)
    bodies = [json.dumps({"image": each.tolist()}).encode() for each in pair(0)[0][:IMAGES]]
    tasks = []
    for number in range(1, options.tasks + 1):
        x, y = pair(number)
        value = {"name": f"task {number + 1}", "images": x.tolist(), "labels": y.tolist()}
        tasks.append(json.dumps(value).encode())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "learner.safetensors"
        learner.save(file)
        command = [sys.executable, "-m", "nispa", "serve", str(file), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            found = re.search(r":(\d+) ", server.stdout.readline())
            assert found
            try:
                told = asyncio.run(load(int(found[1]), options.rate, tasks, bodies))
            finally:
                server.send_signal(signal.SIGTERM)
        saved = len(nispa.Learner.load(file).tasks)
    print(json.dumps({"rate": options.rate, **told, "tasks_in_file": saved}))


if __name__ == "__main__":
    main()
