"""What a learner is given: every way in reads images and labels alike, and says what it doubts."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nispa import Learner
from nispa.data.arrays import as_images
from nispa.data.own_tasks import from_tasks
from nispa.data.unlabelled import read_unlabelled
from nispa.errors import CapacityError, DataError, DataWarning, ScenarioError
from tests.extent import optional
from tests.test_learner import arrays

IMAGES, LABELS = arrays(0, 24)
FLOATS = IMAGES.astype(np.float64) / 255
ROWS = FLOATS.reshape(24, 16)
NAMES = np.array(["a", "b"])[LABELS]


def fresh(shape: Any = (1, 4, 4), **settings: Any) -> Learner:
    usual: dict[str, Any] = {"classes": 8, "hidden": (8,), "epochs": 3, "batch_size": 8}
    return Learner("finetune", input_shape=shape, architecture="mlp", **(usual | settings))


def taught(labels: Any = LABELS, **settings: Any) -> Learner:
    made = fresh(**settings)
    made.learn(IMAGES, labels)
    return made


class Frame:
    """Stands for a data frame or a series of any library: it can become an array."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self._values.astype(dtype) if dtype else self._values


# Labels.


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.tolist(), torch.tensor(LABELS)])
def test_labels_mean_the_same_in_every_shape(labels: Any) -> None:
    expected = taught().accuracy(IMAGES, LABELS, 0)
    assert taught(labels).accuracy(IMAGES, labels, 0) == expected
    predicted = taught().predict(IMAGES, 0)
    assert expected == np.mean(predicted == LABELS)


@pytest.mark.parametrize("labels", [LABELS[:1], [0], 0, LABELS[:, None].T, LABELS[:-1]])
def test_there_is_a_label_for_each_image(labels: Any) -> None:
    for use in (fresh().learn, taught().accuracy):
        with pytest.raises(DataError, match="label"):
            use(IMAGES, labels)


def test_unlike_kinds_of_labels_are_not_compared() -> None:
    made = taught(np.array(["0", "1"])[LABELS])
    with pytest.raises(DataError, match=r"labels are whole numbers, such as 0, but .* texts.* '0'"):
        made.accuracy(IMAGES, LABELS, 0)
    with pytest.raises(DataError, match=r"labels are texts, such as '0', but .* whole numbers"):
        taught().accuracy(IMAGES, LABELS.astype(str), 0)
    with pytest.raises(ScenarioError, match=r"labels are texts, .* whole numbers"):
        taught(incremental="class").learn(IMAGES, NAMES)
    for mixed in ([1 if label else "a" for label in LABELS], ["a", *LABELS[1:].tolist()]):
        with pytest.raises(DataError, match="some are numbers and some are texts"):
            fresh().learn(IMAGES, mixed)


def test_tasks_with_outputs_of_their_own_may_have_labels_of_their_own_kind() -> None:
    made = taught(NAMES)
    made.learn(*arrays(1, 24))
    assert set(made.predict(IMAGES).tolist()) <= {"a", "b", 0, 1}
    assert made.predict(IMAGES, 1).dtype == np.int64
    told = made.accuracy(IMAGES, NAMES)
    assert told == np.mean(
        [one == two for one, two in zip(made.predict(IMAGES), NAMES, strict=True)]
    )


@pytest.mark.parametrize("foreign", [-1, 7])
def test_labels_that_were_never_learned_are_not_counted(foreign: int) -> None:
    labels = LABELS.copy()
    labels[3] = foreign
    with pytest.raises(DataError, match=f"labels {foreign} were not learned in task 0"):
        taught().accuracy(IMAGES, labels, 0)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([None if row == 3 else int(label) for row, label in enumerate(LABELS)], "row 3 is 'None'"),
        ([float("nan") if row == 3 else "a" for row in range(24)], "row 3 is 'nan'"),
        (np.ma.array(LABELS, mask=[True] + [False] * 23), "masked"),
        (LABELS.astype(float), r"pass labels.astype\(int\)"),
        (np.eye(2)[LABELS], r"labels.argmax\(1\)"),
        (np.array(["a", "\ud800"])[LABELS], "no file can hold"),
        (LABELS.astype("datetime64[D]"), "datetime64"),
    ],
)
def test_labels_that_are_none(labels: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        fresh().learn(IMAGES, labels)


# Images.


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(np.int64),
        IMAGES.astype(np.uint16),
        torch.tensor(IMAGES, dtype=torch.int32),
        IMAGES[:, None],
        IMAGES[..., None],
        [Image.fromarray(each) for each in IMAGES],
        Frame(IMAGES),
        IMAGES.tolist(),
    ],
    ids=["int64", "uint16", "int32", "first", "last", "pictures", "protocol", "lists"],
)
def test_pixels_are_the_same_in_every_type_and_shape(images: Any) -> None:
    made = taught()
    expected = made.predict_proba(IMAGES, 0)
    assert (made.predict_proba(images, 0) == expected).all()
    other = fresh()
    other.learn(images, LABELS)
    assert (other.predict_proba(images, 0) == expected).all()
    assert other.accuracy(images, LABELS, 0) == made.accuracy(IMAGES, LABELS, 0)


def test_the_learners_shape_tells_where_the_channels_stand() -> None:
    made = fresh((3, 1, 3))
    last = np.random.default_rng(0).random((24, 1, 3, 3))  # where both may be the channels
    made.learn(last, LABELS)
    first = made.predict_proba(last.transpose(0, 3, 1, 2), 0)
    assert (made.predict_proba(last, 0) == first).all()
    assert made.accuracy(last, LABELS, 0, channels_first=False) == made.accuracy(last, LABELS, 0)


def test_a_single_image_can_be_predicted() -> None:
    made = taught()
    expected = made.predict(IMAGES[:1], 0)
    for one in (IMAGES[0], IMAGES[0][None], IMAGES[0][None, None], Image.fromarray(IMAGES[0])):
        assert made.predict(one, 0) == expected
    colour = fresh((3, 4, 4))
    rgb = np.repeat(IMAGES[..., None], 3, 3)
    colour.learn(rgb, LABELS)
    expected = colour.predict(rgb[:1], 0)
    for one in (rgb[0], rgb[0].transpose(2, 0, 1), Image.fromarray(rgb[0])):
        assert colour.predict(one, 0) == expected
    table = fresh(16)
    table.learn(ROWS, LABELS)
    assert table.predict(ROWS[0], 0) == table.predict(ROWS[:1], 0)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (None, r"shape \(\) must be"),
        ("photo.png", r"shape \(\) must be"),
        (FLOATS.astype(complex), "complex128"),
        (torch.zeros(24, 4, 4, device="meta"), "cannot be read as an array"),
        (torch.tensor(FLOATS).to_sparse(), "cannot be read as an array"),
        (IMAGES.astype(int) - 5, "pixels from 0 to 255, but these go from -5"),
        (IMAGES.astype(np.uint16) * 256, r"images / 65535"),
        ([FLOATS[0], FLOATS[1, :2]], "rows of different length"),
    ],
)
def test_images_that_are_none(images: Any, reason: str) -> None:
    for use in (lambda: fresh().learn(images, LABELS), lambda: taught().predict(images, 0)):
        with pytest.raises(DataError, match=reason):
            use()


def test_images_of_another_shape_get_a_hint() -> None:
    with pytest.raises(CapacityError, match=r"images.reshape\(-1, 1, 4, 4\)"):
        fresh().learn(ROWS, LABELS)
    with pytest.raises(CapacityError, match=r"channels come first.*input_shape=\(1, 4, 2\)"):
        fresh((4, 2, 1)).learn(IMAGES[..., :2], LABELS)


# Values that cannot be meant.


def test_floats_meant_as_bytes_are_refused() -> None:
    for images in (IMAGES.astype(np.float32), FLOATS * 300 - 150):
        with pytest.raises(DataError, match="images / 255"):
            fresh().learn(images, LABELS)
    made = fresh()
    made.learn(FLOATS, LABELS)
    with pytest.raises(DataError, match=r"those of the first task .*images / 255"):
        made.predict(IMAGES.astype(np.float32), 0)
    assert (made.predict(IMAGES, 0) == made.predict(FLOATS, 0)).all()


def test_another_range_than_that_of_the_first_task_is_told(tmp_path: Any) -> None:
    made = fresh()
    made.learn(FLOATS, LABELS)
    made.save(tmp_path / "one")
    for learner in (made, Learner.load(tmp_path / "one")):
        with pytest.warns(DataWarning, match="these images reach .* those of the first task"):
            learner.accuracy(FLOATS * 20, LABELS, 0)
        with pytest.warns(DataWarning, match="only .* those of the first task"):
            learner.learn(FLOATS / 100, LABELS)
        learner.predict(FLOATS[0] * 0, 0)  # a black image is an image


def test_a_learner_that_knows_no_range_doubts_what_looks_like_bytes(tmp_path: Any) -> None:
    made = taught()
    made._reach = None  # as in the network of a run
    with pytest.warns(DataWarning, match="reach 2.*images / 255"):
        made.predict(IMAGES.astype(np.float32), 0)


def test_tasks_of_a_scenario_are_alike() -> None:
    with pytest.raises(ScenarioError, match="whole numbers in some tasks and texts in others"):
        from_tasks([(IMAGES, LABELS), (IMAGES, LABELS.astype(str))], shared_classes=True)
    assert len(from_tasks([(IMAGES, LABELS), (IMAGES, NAMES)], shared_classes=False)) == 2
    with pytest.warns(DataWarning, match="task 1: these images reach") as caught:
        from_tasks([(FLOATS, LABELS), (FLOATS * 20, LABELS + 2)])
    assert caught[0].filename == __file__


def test_the_warning_points_at_the_callers_line() -> None:
    with pytest.warns(DataWarning) as caught:
        fresh().learn((IMAGES > 100).astype(np.uint8), LABELS)
    assert caught[0].filename == __file__
    assert "the brightest pixel is 1 of 255" in str(caught[0].message)


def test_tables_are_used_as_they_are() -> None:
    made = fresh((16,))
    with pytest.warns(DataWarning, match="the columns are used as they are, but reach 2"):
        made.learn(IMAGES.reshape(24, 16).astype(int), LABELS)
    assert made.tasks
    assert fresh((16,)).learn(ROWS * 90 - 30, LABELS)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16])
def test_whole_numbers_mean_what_they_meant_in_the_first_task(kind: Any, standardise: bool) -> None:
    """Beyond 1, values that were learned are no pixels in [0, 1]; so those of any type are not."""
    for values, shape in ((IMAGES.reshape(24, 16) // 16, (16,)), (IMAGES // 16.0, (1, 4, 4))):
        made = fresh(shape, standardise=standardise)
        made.learn(values.astype(float if len(shape) == 3 else np.int64), LABELS)
        wanted = made.scores(values.astype(float), 0)
        assert np.array_equal(made.scores(values.astype(kind), 0), wanted)
        more = LABELS + 2
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataWarning)
            made.learn(values.astype(kind), more)
            assert made.accuracy(values.astype(kind), more, 1) == made.accuracy(values, more, 1)


def test_pixels_stay_pixels_beside_floats_up_to_one() -> None:
    made = fresh()
    made.learn(FLOATS, LABELS)
    assert np.allclose(made.scores(IMAGES, 0), made.scores(FLOATS, 0), atol=1e-5)
    with pytest.warns(DataWarning, match="none of these is above 1"):
        made.predict((IMAGES > 100).astype(np.int64), 0)


def test_pillow_images_are_read_as_their_files_are(tmp_path: Path) -> None:
    deep = Image.fromarray(IMAGES[0].astype(np.uint16) * 257)
    turned = Image.fromarray(IMAGES[1])
    exif = turned.getexif()
    exif[0x0112] = 6
    clear = Image.new("LA", (4, 4), (10, 100))
    for number, image in enumerate((deep, turned, clear)):
        path = tmp_path / f"{number}.png"
        image.save(path, exif=exif) if image is turned else image.save(path)
        (stored,) = read_unlabelled([path], (1, 4, 4))
        with Image.open(path) as opened:
            given, _ = as_images([opened])
        assert torch.equal(given, stored.images)
    dark = [Image.fromarray(np.full((4, 4), level, np.uint16)) for level in (9, 200)]
    with pytest.raises(DataError, match="reach 200 of 65535"):
        as_images(dark)
    with pytest.raises(DataError, match="mode F must be"):
        as_images([Image.new("F", (4, 4))])
    with pytest.raises(CapacityError, match=r"\(1, 4, 4\) do not fit"):
        fresh((3, 4, 4)).predict(Image.new("L", (4, 4)))


def test_differences_that_floats_cannot_hold_are_refused() -> None:
    time = 1.7e9 + 60.0 * np.arange(24)
    rows = np.stack([ROWS[:, 0], time], 1)
    with pytest.raises(DataError, match=r"feature 1: reaches 1.7e.*subtract its mean"):
        fresh((2,), standardise=True).learn(rows, LABELS)
    assert fresh((2,), standardise=True).learn(rows - [0, time.mean()], LABELS)


# Tables and data sets.


def test_a_frame_is_a_table() -> None:
    made = fresh((16,))
    made.learn(Frame(ROWS), Frame(NAMES.astype(object)))
    assert made.classes_of(0) == ["a", "b"]
    told = made.accuracy(Frame(ROWS.astype(object)), Frame(NAMES[:, None]), 0)
    assert told == np.mean(made.predict(ROWS, 0) == NAMES)
    mixed = ROWS.astype(object)
    mixed[2, 5] = "red"
    with pytest.raises(DataError, match="row 2, column 5 is 'red', not a number"):
        made.predict(Frame(mixed), 0)
    mixed[2, 5] = None
    with pytest.raises(DataError, match="row 2 has a value that is not a finite"):
        made.predict(Frame(mixed), 0)


def test_frames_of_pandas() -> None:
    pandas = optional("pandas")
    made = fresh((16,))
    frame = pandas.DataFrame(ROWS).astype({0: "Float64"}).rename(columns=str)
    made.learn(frame, pandas.Series(NAMES).astype("category"))
    assert set(made.predict(frame.iloc[0], 0)) < {"a", "b"}
    told = made.accuracy(frame, pandas.DataFrame({"y": NAMES}), 0)
    assert told == np.mean(made.predict(ROWS, 0) == NAMES)


def test_frames_of_polars() -> None:
    polars = optional("polars")
    made = fresh((16,))
    made.learn(polars.DataFrame(ROWS), polars.Series(NAMES.tolist()))
    told = made.accuracy(polars.DataFrame(ROWS), polars.DataFrame({"y": NAMES.tolist()}), 0)
    assert told == np.mean(made.predict(ROWS, 0) == NAMES)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(image, int(label)) for image, label in zip(FLOATS, LABELS, strict=True)])


class Pictures(Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(IMAGES[index]), NAMES[index]


PAIRS = TensorDataset(torch.tensor(FLOATS[:, None]), torch.tensor(LABELS))


@pytest.mark.parametrize(
    "data",
    [
        PAIRS,
        TensorDataset(torch.tensor(FLOATS), torch.tensor(LABELS[:, None])),
        DataLoader(PAIRS, batch_size=7),
        DataLoader(Stream(), batch_size=7),
        Pictures(),
        TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS)),
        DataLoader(TensorDataset(torch.tensor(ROWS), torch.tensor(LABELS)), batch_size=7),
    ],
    ids=["data set", "column", "loader", "stream", "pictures", "table", "loader of a table"],
)
def test_data_sets_and_loaders_of_pytorch(data: Any) -> None:
    is_table = data.dataset if isinstance(data, DataLoader) else data
    rows = isinstance(is_table, TensorDataset) and is_table.tensors[0].dim() == 2
    made, plain = fresh(16 if rows else (1, 4, 4)), fresh(16 if rows else (1, 4, 4))
    made.learn(data)
    names = NAMES if isinstance(data, Pictures) else LABELS
    plain.learn(ROWS if rows else IMAGES if isinstance(data, Pictures) else FLOATS, names)
    found, expected = made.predict_proba(data, 0), plain.predict_proba(ROWS if rows else FLOATS, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert made.accuracy(data, task=0) == np.mean(made.predict(data, 0) == names)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((IMAGES,), "labels are missing"),
        ((PAIRS, LABELS), "labels are given twice"),
        ((Stream(),), "pass a DataLoader"),
        ((TensorDataset(torch.tensor(FLOATS)),), r"must be \(image, label\)"),
        ((DataLoader(TensorDataset(torch.tensor(FLOATS))),), "has no label"),
        ((DataLoader(Stream(), batch_size=None, collate_fn=lambda item: {"x": 1}),), "not dict"),
        ((DataLoader(TensorDataset(torch.zeros(0, 4, 4), torch.zeros(0))),), "yields nothing"),
    ],
)
def test_data_sets_that_are_none(given: Any, reason: str) -> None:
    for use in (fresh().learn, taught().accuracy):
        with pytest.raises(DataError, match=reason):
            use(*given)


def test_images_alone_can_be_predicted() -> None:
    made, alone = taught(), TensorDataset(torch.tensor(FLOATS))
    expected, plain = made.predict(FLOATS, 0), cast("Dataset[Any]", list(FLOATS))
    for data in (alone, DataLoader(alone, batch_size=5), PAIRS, DataLoader(plain, batch_size=5)):
        assert (made.predict(data, 0) == expected).all()


def test_pandas_and_polars_are_not_imported() -> None:
    import subprocess

    code = (
        "import sys, nispa.learner; print(sorted({'pandas', 'polars', 'IPython'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
