"""Online accuracy: each image is predicted once, before the network learns from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nispa.training.fit import Batch
from nispa.training.online import Online

from ..methods.toy import finish, toy_method, toy_task


def batch(epoch: int, *labels: int) -> Batch:
    index = torch.arange(len(labels))
    return Batch(torch.ones(len(labels), 1), torch.tensor(labels), index, epoch, 1)


def test_it_is_measured_before_the_step_in_the_first_epoch() -> None:
    network = nn.Linear(1, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.0, 0, 0]))

    def step(_: Batch) -> Tensor:
        with torch.no_grad():
            network.bias.copy_(network.bias.roll(1))  # now the next class
        return torch.zeros(())

    online = Online(network, lambda logits: logits.argmax(1), torch.device("cpu"))
    stepped = online.around(step)
    assert online.seen == 0
    stepped(batch(1, 0, 0, 1))  # it says 0: two of three
    stepped(batch(1, 1, 2))  # it says 1: one of two
    assert online.accuracy == 3 / 5
    stepped(batch(2, 2, 2))  # right, but not for the first time
    assert online.accuracy == 3 / 5

    other = Online(network, lambda logits: logits.argmax(1), torch.device("cpu"))
    tensors, values = online.carried.save()
    other.carried.load(tensors, values)
    assert other.accuracy == 3 / 5
    with pytest.raises(ValueError, match="online"):
        other.carried.load({}, {"right": 3, "seen": 2})


@pytest.mark.parametrize("name", ["finetune", "cbp", "redo"])
def test_measuring_changes_nothing_that_is_learned(name: str) -> None:
    plain, measured = (toy_method(name, epochs=2, online=on) for on in (False, True))
    reports = []
    for method in (plain, measured):
        method.start()
        reports.append(finish(method.learn(toy_task(0)))[1])
    for key, tensor in plain.state().tensors.items():
        assert torch.equal(tensor, measured.state().tensors[key])
    assert reports[0].online_accuracy is None
    assert reports[1].online_accuracy is not None
    assert 0.3 < reports[1].online_accuracy < 1
