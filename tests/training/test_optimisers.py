"""The optimisers are PyTorch's, bit by bit, without its compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nispa.training import optimisers

KINDS: dict[str, dict[str, Any]] = {
    "Adam": {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    "SGD": {"lr": 0.1, "momentum": 0.9, "fused": True},
    "Adadelta": {"lr": 0.5},
}


def path(kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> list[Tensor]:
    """The values after each step, in the middle of which another optimiser takes over."""
    values = nn.Parameter(torch.linspace(-1, 1, 20))
    optimiser, found, counted = kind([values], **settings), [], []
    optimiser.register_step_post_hook(lambda *_: counted.append(1))
    for number in range(6):
        if number == 3:
            state = optimiser.state_dict()
            optimiser = kind([values], **settings)
            optimiser.load_state_dict(state)
        optimiser.zero_grad()
        (values.square() + values.sin()).sum().backward()
        optimiser.step()
        found.append(values.detach().clone())
    assert len(counted) == 3
    assert values.requires_grad
    return found


@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits_as_pytorchs(name: str) -> None:
    mine = path(getattr(optimisers, name), KINDS[name])
    for found, wanted in zip(mine, path(getattr(torch.optim, name), KINDS[name]), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.ci
def test_a_task_is_learned_without_the_compiler() -> None:
    code = """if True:
        import sys, torch, nispa
        learner = nispa.Learner("nispa", input_shape=(4,), classes=2, settle_epochs=1, max_phases=3)
        learner.learn(torch.rand(40, 4), torch.arange(40) % 2)
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
