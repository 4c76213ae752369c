"""A scenario of one's own: a list of tasks from arrays, run with a record, and the record read.

Run it with ``python examples/own_scenario.py``. The record, its picture and the network stay in the
folder that it prints; ``nispa show FOLDER`` prints the same report again.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from sklearn.datasets import load_digits

from nispa.data.own_tasks import from_tasks
from nispa.methods.presets import resolve
from nispa.reading.plots import picture
from nispa.reading.tables import render
from nispa.runs.folder import RunFolder, fresh_name
from nispa.runs.metrics import percent
from nispa.runs.runner import Experiment, TaskEnd, run

digits = load_digits()
images, labels = digits.images / 16, digits.target
train = np.arange(len(images)) % 4 > 0  # three images of four; the others are the test set

# Each task is (x_train, y_train, x_test, y_test); without the last two, a fifth is held out.
# Three views of the digits, each with classes of its own: two, five and ten of them.
tasks = []
for view, classes in ((images, labels // 5), (images[:, ::-1], labels // 2), (1 - images, labels)):
    tasks.append((view[train], classes[train], view[~train], classes[~train]))
scenario = from_tasks(
    tasks,
    name="three-views",
    task_names=("small or large", "upside down", "negative"),
    shared_classes=False,  # label 0 means something else in each task, so it gets its own output
)

# Settings: a preset's, by default the one that suits the images; then one's own.
settings = resolve(
    "nispa", "default", scenario.name, scenario.input_shape, {"density": 0.3, "max_phases": 3}
)
experiment = Experiment(scenario, settings, seed=0)

# A run is a generator of events: show them, or stop by leaving the loop.
folder = fresh_name("runs", scenario.name)
for event in run(experiment, folder, drawing=picture):
    if isinstance(event, TaskEnd):
        shown = ", ".join(percent(value) for value in event.accuracies)
        print(f"after {scenario.tasks[event.task].name}: {shown} %")

# What is on disk is all there is: the numbers, with the formulas that made them.
finished = RunFolder(folder)
record = finished.read_record()
Console().print(render(record))
for name, metric in record.metrics.items():
    print(f"{name} = {metric.value} ({metric.formula})")
epochs = [event for event in finished.read_events() if event["event"] == "epoch"]
print(f"{len(epochs)} epochs are described in {folder / 'events.jsonl'}")
