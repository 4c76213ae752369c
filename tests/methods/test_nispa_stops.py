"""When a task ends: beyond chance, or with its share of the units."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nispa.base.seeding import derive
from nispa.methods.base import PhaseEnd, PhaseStart
from nispa.methods.nispa import Nispa, _Outcome
from nispa.training.pausing import EpochEnd

from .toy import accuracy_on, finish, toy_method, toy_task


def nispa(**values: object) -> Nispa:
    method = toy_method("nispa", **values)  # type: ignore[arg-type]
    assert isinstance(method, Nispa)
    method.start()
    return method


def outcome(right: str) -> _Outcome:
    """A phase that has some of its validation images right, such as ``"110"``."""
    hits = torch.tensor([each == "1" for each in right])
    return _Outcome(float(hits.float().mean()), hits)


@pytest.mark.parametrize(
    ("best", "reached", "ends"),
    [
        ("1111111111", "0000111111", False),  # 4 lost: 4 > 2 * sqrt(4) is false
        ("1111111111", "0000011111", True),  # 5 lost: 5 > 2 * sqrt(5) = 4.47
        ("0111111111", "1000001111", False),  # 5 lost, 1 won: 4 > 2 * sqrt(6) = 4.90 is false
        ("1111111111", "1111111111", False),
        ("0000011111", "1111111111", False),  # better
    ],
)
def test_a_drop_counts_beyond_its_standard_error(best: str, reached: str, ends: bool) -> None:
    method = nispa(drop_errors=2.0, accuracy_drop=0.75, k=30)
    kept = method.stable
    stop = method._reason_to_stop(3, 0.9, outcome(reached), outcome(best), kept)
    assert stop == ("accuracy_drop" if ends else "")
    assert method._reason_to_stop(2, 0.9, outcome(reached), outcome(best), kept) == ""


def test_a_drop_within_the_tolerance_never_counts() -> None:
    method = nispa(drop_errors=0.1, accuracy_drop=60.0, k=30)
    found = method._reason_to_stop(3, 0.9, outcome("0000011111"), outcome("1" * 10), method.stable)
    assert found == ""


def test_a_task_ends_with_its_share_of_the_units() -> None:
    method = nispa(unit_share=0.5, k=30, accuracy_drop=100)
    _, report = finish(method.learn(toy_task(0)))
    assert report.stop_reason == "unit_share"
    taken = [int(method.stable[group.name].sum()) / group.size for group in method.topology.hidden]
    assert sum(taken) / len(taken) <= 0.5


def test_with_all_units_a_task_ends_as_soon_as_it_may() -> None:
    method = nispa(unit_share=1.0, k=30, accuracy_drop=100)
    _, report = finish(method.learn(toy_task(0)))
    assert (report.phases, report.stop_reason) == (3, "unit_share")


def test_what_a_share_keeps_is_the_phase_that_met_it() -> None:
    """The last phase's network stays; an end by accuracy goes back to the one before."""
    method = nispa(unit_share=1.0, k=30, accuracy_drop=100, keep="last")
    task = toy_task(0)
    ends = []
    images, _ = task.test.batch(slice(None))
    for event in method.learn(task):
        if isinstance(event, EpochEnd):
            method.network.eval()
            with torch.no_grad():
                ends.append(method.network(images)[:, list(task.classes)].clone())
    method.network.eval()
    with torch.no_grad():
        after = method.network(images)[:, list(task.classes)]
    torch.testing.assert_close(after, ends[-1])


@pytest.mark.parametrize(("share", "rewirings"), [(0.0, 2), (1.0, 3)])
def test_what_is_owed_is_that_of_the_phase_returned_to(
    share: float, rewirings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four phases the third is kept, after two rewirings; with a share the last one is."""
    method = nispa(unit_share=share, min_phases=3, max_phases=4, k=30, accuracy_drop=100)
    made = []

    def rewire(*_: object) -> dict[str, object]:
        made.append(1)
        method.owed = dict.fromkeys(method.owed, len(made))
        return {}

    monkeypatch.setattr(method, "rewire", rewire)
    _, report = finish(method.learn(toy_task(0)))
    assert (report.phases, len(made)) == (4, 3)
    assert set(method.owed.values()) == {rewirings}


def test_settling_is_a_phase_of_its_own_after_the_others() -> None:
    method = nispa(max_phases=3, settle_epochs=2, k=30, accuracy_drop=100)
    events, report = finish(method.learn(toy_task(0)))
    starts = [event for event in events if isinstance(event, PhaseStart)]
    assert [start.phase for start in starts] == [1, 2, 3, 4]
    assert [start.epochs for start in starts] == [4, 4, 4, 2]
    assert starts[-1].tau == starts[1].tau == report.tau  # the candidates of the last good phase
    assert [event.phase for event in events if isinstance(event, PhaseEnd)] == [1, 2, 3, 4]
    assert report.phases == 4
    epochs = [event for event in events if isinstance(event, EpochEnd)]
    assert len(epochs) == 4 + 4 + 4 + 2
    assert report.samples_trained == sum(event.samples for event in epochs) == 14 * 48


@pytest.mark.parametrize("fresh", [False, True])
def test_settling_afresh_begins_with_values_of_its_own(fresh: bool) -> None:
    """With steps too small to see, values stay as they were drawn."""
    still = {"learning_rate": 1e-12, "restart": False, "growth_init": "zero"}
    method = nispa(max_phases=3, settle_epochs=1, settle_fresh=fresh, accuracy_drop=100, **still)
    finish(method.learn(toy_task(0)))
    settled = {name: value.clone() for name, value in method.network.named_parameters()}
    method.redraw_plastic(toy_task(0), "fan_in", derive(0, "settle"))
    for name, value in method.network.named_parameters():
        assert torch.allclose(settled[name], value, atol=1e-6) == (fresh or "bias" in name)


def test_a_last_fit_that_gets_stuck_is_done_again_from_the_values_of_the_phases() -> None:
    class Stuck(Nispa):
        """Afresh, no unit fires any more."""

        def redraw_plastic(self, *args: Any) -> None:
            super().redraw_plastic(*args)
            with torch.no_grad():
                for layer in self.network.layers.values():
                    layer.weight.zero_()
                    layer.bias.fill_(-1.0)

    method = nispa(max_phases=3, settle_epochs=3, settle_fresh=True, accuracy_drop=5, restart=False)
    method.__class__ = Stuck
    task = toy_task(0)
    events, report = finish(method.learn(task))
    ends = [event for event in events if isinstance(event, PhaseEnd)]
    assert [end.phase for end in ends] == [1, 2, 3, 4, 5]
    assert [end.accuracy is not None and end.accuracy > 0.8 for end in ends[3:]] == [False, True]
    assert accuracy_on(method, task) >= 0.9
    assert (report.phases, report.samples_trained) == (5, 48 * (3 * 4 + 2 * 3))


def test_values_of_a_last_fit_that_harms_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Nispa._settle

    def harmed(self: Nispa, *args: Any) -> Any:
        result = yield from settle(self, *args)
        for layer in self.network.layers.values():
            layer.weight.data.zero_()
        return replace(result, accuracy=self.validator(self.network, *given)())

    method = nispa(max_phases=3, settle_epochs=2, settle_fresh=True, accuracy_drop=5, restart=False)
    task = toy_task(0)
    _, validation = method.prepare_both(method.network, task)
    given = method.class_mask(task.classes), validation
    monkeypatch.setattr(Nispa, "_settle", harmed)
    _, report = finish(method.learn(task))
    assert report.phases == 5
    assert accuracy_on(method, task) >= 0.9


@pytest.mark.parametrize(("few", "images"), [(17, 16 + 48), (16, 16)])
def test_images_that_are_right_are_those_of_the_accuracy(
    few: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen validation images; where these are few, the training images follow."""
    monkeypatch.setattr("nispa.methods.nispa.FEW_IMAGES", few)
    method = nispa(drop_errors=1.0, max_phases=3, k=30, accuracy_drop=100)
    reached: list[_Outcome] = []
    decide = method._reason_to_stop

    def deciding(t: int, tau_t: float, now: _Outcome, *rest: Any) -> str:
        reached.append(now)
        return decide(t, tau_t, now, *rest)

    monkeypatch.setattr(method, "_reason_to_stop", deciding)
    finish(method.learn(toy_task(0)))
    assert len(reached) == 3
    for outcome in reached:
        assert outcome.right is not None
        assert len(outcome.right) == images
        assert float(outcome.right[:16].double().mean()) == pytest.approx(outcome.accuracy)
    assert reached[-1].accuracy > 0.6
