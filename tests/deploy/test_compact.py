"""Compacted learners: the same predictions, without nispa."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nispa
from nispa import Learner
from nispa.errors import ConfigError, NotLearnedError
from tests.deploy.nets import toy_learner
from tests.methods.toy import toy_images

IMAGES, _ = toy_images(1, 64, "test").batch(slice(None))


def assert_predicts_as(module: Any, learner: Learner) -> None:
    """Whether logits and predictions of every task of a module are the learner's."""
    logits = module(IMAGES)
    for task in module.tasks:
        number, found = task["task"], logits[:, task["outputs"]]
        wanted = learner.method.scores(IMAGES, learner.tasks[number])
        assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
        labels = np.array(task["labels"])[found.argmax(1)]
        assert (labels == learner.predict(IMAGES.numpy(), task=number)).all()


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("method", ["nispa", "packnet", "wsn", "hat", "finetune", "stl"])
@pytest.mark.filterwarnings("ignore:the network is full")
def test_predicts_as_the_learner_does(method: str, network: str, tmp_path: Path) -> None:
    learner = toy_learner(method, network)
    everything: Any = nispa.compact(learner)
    assert_predicts_as(everything, learner)
    assert everything.needs_task == (not learner.method.task_agnostic)
    for number in range(2):
        one: Any = nispa.compact(learner, number)
        assert one.labels == learner.classes_of(number)
        assert [task["task"] for task in one.tasks] == [number]
        assert_predicts_as(one, learner)
        assert size(one) <= size(everything)
    learner.save(tmp_path / "saved")
    assert_predicts_as(nispa.compact(Learner.load(tmp_path / "saved"), [1]), learner)


def size(module: Any) -> int:
    return sum(values.numel() for values in module.parameters())


def test_without_a_task_it_chooses_among_all() -> None:
    learner = toy_learner("finetune", incremental="class")
    module: Any = nispa.compact(learner)
    found = np.array(module.labels)[module(IMAGES).argmax(1)]
    assert (found == learner.predict(IMAGES.numpy())).all()
    assert module.labels == learner.classes_of()


def test_a_copy_that_learning_does_not_change() -> None:
    learner = toy_learner("finetune", tasks=1)
    module: Any = nispa.compact(learner)
    before = module(IMAGES)
    samples = toy_images(1, 48, "train")
    learner.learn(samples.images.numpy(), samples.labels.numpy())
    assert torch.equal(module(IMAGES), before)
    assert not any(values.requires_grad for values in module.parameters())


@pytest.mark.parametrize("method", ["finetune", "packnet"])
def test_runs_where_there_is_no_nispa(method: str, tmp_path: Path) -> None:
    module: Any = nispa.compact(toy_learner(method))
    assert all(type(each).__module__.startswith("torch.") for each in module.modules())
    torch.save(module, tmp_path / "module")
    torch.save((IMAGES, module(IMAGES)), tmp_path / "wanted")
    script = """
import sys
sys.modules["nispa"] = None
import torch
module = torch.load(sys.argv[1], weights_only=False)
images, wanted = torch.load(sys.argv[2])
assert torch.allclose(module(images), wanted, atol=1e-6)
assert module.input_shape == (1, 4, 4) and module.scale["uint8"] == 1 / 255
print([task["labels"] for task in module.tasks])
"""
    command: list[str | Path] = [
        sys.executable,
        "-c",
        script,
        tmp_path / "module",
        tmp_path / "wanted",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[['left0', 'right0'], ['left1', 'right1']]\n"


def test_tasks_that_were_not_learned_are_refused() -> None:
    learner = toy_learner("finetune", tasks=1)
    for wrong in (1, -1, [0, 2], 0.5, "0"):
        with pytest.raises(NotLearnedError, match="0 to 0"):
            nispa.compact(learner, wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no task"):
        nispa.compact(learner, [])
    with pytest.raises(NotLearnedError, match="learn"):
        nispa.compact(Learner(input_shape=(1, 4, 4), classes=2))


def test_a_method_that_predicts_by_more_than_its_network_is_refused() -> None:
    learner = toy_learner("icarl", tasks=1, incremental="class")
    with pytest.raises(ConfigError, match="icarl"):
        nispa.compact(learner)
