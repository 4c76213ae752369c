"""Tables and series in a learner: given, shown and kept in the shape that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from nispa import Learner
from nispa.errors import CapacityError, ConfigError, DataError, DataWarning, FormatError
from nispa.methods.saving import encode
from tests.data.test_intake import Frame

LABELS = np.arange(40) % 2
SHAPES = ((6,), (3, 4))


def values(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Two classes that differ in the first value."""
    made = np.random.default_rng(seed).normal(0, 1, (40, *shape)).astype(np.float32)
    made.reshape(40, -1)[:, 0] += 6 * LABELS
    return made


def fresh(shape: Any, **given: Any) -> Learner:
    usual: dict[str, Any] = {"classes": 8, "hidden": (8,), "density": 1.0, "batch_size": 8}
    usual |= {"epochs": 3}
    return Learner(given.pop("method", "finetune"), input_shape=shape, **(usual | given))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["nispa", "er", "joint", "packnet"])
def test_learned_shown_and_kept_as_given(
    shape: tuple[int, ...], method: str, tmp_path: Path
) -> None:
    quick: dict[str, Any] = {"method": method, "hidden": (40,), "density": 0.6, "tasks": 3}
    if method == "nispa":
        quick |= {"max_phases": 3, "epochs_per_phase": 2, "settle_epochs": 2, "batch_size": 8}
    else:
        quick |= {"epochs": 20, "batch_size": 8}
    made = Learner(input_shape=shape, classes=8, **quick)
    made.learn(values(shape), LABELS)
    assert made.method.problem.input_shape == shape
    assert f"input_shape={shape}" in repr(made)
    made.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file")
    assert repr(again) == repr(made)
    for learner in (made, again):
        learner.learn(values(shape, 1), LABELS + 2)
    new = values(shape, 2)
    assert (again.predict(new, 1) == made.predict(new, 1)).all()
    made.save(tmp_path / "file")
    again.save(tmp_path / "other")
    assert (tmp_path / "file").read_bytes() == (tmp_path / "other").read_bytes()
    assert made.accuracy(values(shape, 1), LABELS + 2, 1) > 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_in_gives_the_same(shape: tuple[int, ...]) -> None:
    given = values(shape)
    plain = fresh(shape)
    plain.learn(given, LABELS)
    expected = plain.predict_proba(given, 0)
    pairs = TensorDataset(torch.tensor(given), torch.tensor(LABELS))
    ways: list[Any] = [pairs, DataLoader(pairs, batch_size=7), torch.tensor(given), given.tolist()]
    ways += [Frame(given)] if len(shape) == 1 else [given.astype(np.float64)]
    for way in ways:
        made = fresh(shape)
        made.learn(way, *([] if isinstance(way, (TensorDataset, DataLoader)) else [LABELS]))
        assert (made.predict_proba(way, 0) == expected).all()
    assert plain.predict(given[0], 0) == plain.predict(given[:1], 0)  # a single one
    one = fresh((1, 4))
    one.learn(values((4,)), LABELS)  # (n, length) is a channel
    assert (one.predict(values((1, 4)), 0) == one.predict(values((4,)), 0)).all()


def test_whole_numbers_of_series_are_values() -> None:
    sound = (values((2, 8)) * 4).astype(np.int16)
    made, same = fresh((2, 8)), fresh((2, 8))
    made.learn(sound, LABELS)
    same.learn(sound.astype(np.float32), LABELS)
    assert (made.predict_proba(sound, 0) == same.predict_proba(sound, 0)).all()


def test_another_shape_is_refused_with_what_would_fit() -> None:
    with pytest.raises(CapacityError, match=r"shape \(1, 12\).*reshape\(-1, 3, 4\)"):
        fresh((3, 4)).learn(values((12,))[:, None], LABELS)
    with pytest.raises(CapacityError, match=r"\(1, 3, 4\) do not fit .*\(12,\).*reshape\(-1, 12\)"):
        fresh(12).learn(values((3, 4)), LABELS)
    with pytest.raises(CapacityError, match="do not fit"):
        fresh((3, 4)).learn(values((4, 3)), LABELS)
    with pytest.raises(DataError, match=r"must be \(n, channels, length\)"):
        fresh((3, 4)).learn(values((1, 3, 4)), LABELS)


def test_rows_in_their_older_shape_are_the_same_rows(tmp_path: Path) -> None:
    """Files of older versions hold the shape of rows as (1, 1, features)."""
    new, old = (fresh(shape, method="er", memory=20) for shape in (6, (1, 1, 6)))
    for made in (new, old):
        made.learn(values((6,)), LABELS)
    assert (old.predict_proba(values((6,)), 0) == new.predict_proba(values((6,)), 0)).all()
    old.save(tmp_path / "old")
    again = Learner.load(tmp_path / "old")
    assert "input_shape=(1, 1, 6)" in repr(again)
    for made in (again, new):
        made.learn(values((6,), 1), LABELS + 2)
        assert made.predict(values((6,))[0], 0) == made.predict(values((6,))[:1], 0)
    assert (again.predict_proba(values((6,), 2)) == new.predict_proba(values((6,), 2))).all()
    assert (new.predict(values((1, 1, 6))) == new.predict(values((1, 1, 6))[:, 0, 0])).all()


# Standardised.


def unlike(seed: int = 0) -> NDArray[np.float32]:
    """Six columns from thousandths to thousands; a small one tells the class."""
    return values((6,), seed) * np.array([0.001, 1, 5000, 70, 0.3, 20_000], dtype=np.float32)


@pytest.mark.parametrize("method", ["finetune", "er"])
def test_columns_of_unlike_scales(method: str, tmp_path: Path) -> None:
    made = fresh(6, standardise=True, method=method, epochs=20)
    made.learn(unlike(), LABELS)
    made.learn(unlike(1), LABELS + 2)
    assert made.accuracy(unlike(2), LABELS, 0) > 0.85
    train = unlike()
    by_hand = fresh(6, method=method, epochs=20)
    form = made._inputs.forms[0]
    mean, std = (np.array(part, dtype=np.float32) for part in (form.mean, form.std))
    by_hand.learn((train - mean) / std, LABELS)
    by_hand.learn((unlike(1) - mean) / std, LABELS + 2)  # the first task's, once more
    expected = by_hand.predict_proba((unlike(2) - mean) / std, 1)
    np.testing.assert_allclose(made.predict_proba(unlike(2), 1), expected, atol=1e-5)
    made.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file")
    assert (again.predict_proba(unlike(2), 0) == made.predict_proba(unlike(2), 0)).all()
    for learner in (made, again):
        learner.learn(unlike(3), LABELS + 4)
    assert (again.predict_proba(unlike(2), 2) == made.predict_proba(unlike(2), 2)).all()
    plain = fresh(6, method=method, epochs=20)
    with pytest.warns(DataWarning, match="standardise=True"):
        plain.learn(unlike(), LABELS)
    assert plain.accuracy(unlike(2), LABELS, 0) < 0.8


def test_the_first_task_decides_even_after_loading(tmp_path: Path) -> None:
    made = fresh(6, standardise=True)
    made.save(tmp_path / "empty")
    again = Learner.load(tmp_path / "empty")
    for learner in (made, again):
        learner.learn(unlike(), LABELS)
    assert (again.predict_proba(unlike(2), 0) == made.predict_proba(unlike(2), 0)).all()
    with pytest.raises(ConfigError, match="standardise='yes' must be True or False"):
        fresh(6, standardise="yes")


def test_images_are_standardised_by_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), dtype=np.uint8)
    made = fresh((3, 4, 4), standardise=True)
    made.learn(images, LABELS)
    form = made._inputs.forms[0]
    assert form.mean is not None
    assert len(form.mean) == 3
    scaled = made.predict_proba(images / 255.0, 0)
    np.testing.assert_allclose(made.predict_proba(images, 0), scaled, atol=1e-5)
    made = fresh((3, 4, 4), standardise=True, method="er")  # bytes, then floats, in one range
    made.learn(images, LABELS)
    made.learn(images / 255.0, LABELS + 2)
    found = made.predict_proba(images)
    np.testing.assert_allclose(found, made.predict_proba(images / 255.0), atol=1e-5)
    unscaled = images.astype(np.float32) * 16  # may be given as they are
    fresh((3, 4, 4), standardise=True).learn(unscaled, LABELS)


def test_a_failed_task_leaves_nothing_behind() -> None:
    made = fresh(6, standardise=True)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.learn(unlike() * 50, LABELS, watch=stop)
    same = fresh(6, standardise=True)
    for learner in (made, same):
        learner.learn(unlike(), LABELS)
    assert (made.predict_proba(unlike(), 0) == same.predict_proba(unlike(), 0)).all()


def test_a_damaged_preparation_is_refused(tmp_path: Path) -> None:
    made = fresh(6, standardise=True)
    made.learn(unlike(), LABELS)

    class Broken:
        def __bool__(self) -> bool:
            return True

        def as_json(self) -> dict[str, Any]:
            return made._inputs.as_json() | {"tasks": [3]}

    content = encode(made.method, made.settings, made.labels, None, Broken())  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(FormatError, match="the preparation of inputs is damaged"):
        Learner.load(tmp_path / "file")
    assert b'"inputs"' not in encode(fresh(6).method, fresh(6).settings)  # as files always were
