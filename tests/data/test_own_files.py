"""People's own files: archives and their bounds, arrays, tables."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nispa.data.dataset import ImageData
from nispa.data.named import build_scenario
from nispa.data.shaping import Shaping
from nispa.data.sources import load
from nispa.data.unlabelled import read_unlabelled
from nispa.errors import DataError, ScenarioError
from tests.data.makers import image_bytes, pixels, read_or_refuse
from tests.data.test_pictures import table, write, write_folders


def sizes(data: ImageData) -> tuple[int, int]:
    return len(data.train_labels), len(data.test_labels)


# Archives and bounds.


def test_a_zip_of_class_folders(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", ["a", "b"], 6)
    plain = load(tmp_path / "pets", seed=3)
    for root in ("", "around/"):
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "pets").rglob("*.png")):
                archive.write(file, root + str(file.relative_to(tmp_path / "pets")))
            archive.writestr("__MACOSX/a/._0.png", b"x")
            archive.writestr(f"{root}a/notes.txt", b"x")
        data = load(path, seed=3)
        assert (data.name, data.class_names) == ("pets", ("a", "b"))
        assert data.identity.sha256 == plain.identity.sha256
        assert "1 .txt" in data.note


def test_zips_made_to_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.zip"

    def made(name: str, content: bytes = b"", link: bool = False) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16 if link else 0
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
        return path

    with pytest.raises(DataError, match="is a link"):
        load(made("a/b.png", b"/etc/passwd", link=True))
    with pytest.raises(DataError, match="holds no data set"):
        load(made("readme.txt"))
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable zip archive"):
        load(path)
    monkeypatch.setattr("nispa.data.zips.MOST_UNPACKED", 10_000)
    monkeypatch.setattr("nispa.data.archives.MOST_UNPACKED", 10_000)
    with pytest.raises(DataError, match=r"more than the .* that a packed file may"):
        load(made("a/b.png", bytes(1 << 20)))
    assert list(tmp_path.iterdir()) == [path]  # nothing was unpacked


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_zips(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "fuzzed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
            archive.writestr(name, image_bytes(pixels(1, 4, 4)[0]))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        read_or_refuse(lambda: load(path))
    except ScenarioError:
        pytest.fail("a damaged archive is a data error")


def test_packed_files_have_an_absolute_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nispa.data.archives.MOST_UNPACKED", 10_000)
    x, y = np.zeros((40, 20, 20), np.uint8), np.arange(40) % 2
    np.savez_compressed(tmp_path / "packed.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"unpacks to .* packed file may; save it with numpy.savez"):
        load(tmp_path / "packed.npz")
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    assert sizes(load(tmp_path / "plain.npz")) == (32, 8)
    from tests.data.makers import write_mnist

    write_mnist(tmp_path / "mnist")
    with pytest.raises(DataError, match="packed file may; unpack it with gunzip"):
        load(tmp_path / "mnist")
    write_mnist(tmp_path / "open", end="")
    assert sizes(load(tmp_path / "open")) == (20, 10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.csv", "x.zip", "x.parquet", "x"])
def test_pipes_and_devices_are_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is no regular file"):
        load(tmp_path / name)
    with pytest.raises(DataError, match="is no regular file"):
        load(Path("/dev/zero"))
    write_folders(tmp_path / "pets", ["a", "b"])
    os.mkfifo(tmp_path / "pets" / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is no regular file"):
        load(tmp_path / "pets")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["x.png", "x.npz", "x.npy"])
def test_a_pipe_to_predict_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is no regular file"):
        read_unlabelled([tmp_path / name], (3, 6, 5))
    write_folders(tmp_path, ["a"], 2)
    assert len(read_unlabelled([tmp_path / "a"], (3, 6, 5))[0].names) == 2
    os.mkfifo(tmp_path / "a" / "pipe.png")
    with pytest.raises(DataError, match="is no regular file"):
        read_unlabelled([tmp_path / "a"], (3, 6, 5))


# Arrays and tables.


def test_arrays_to_predict_are_read_as_data_sets_are(tmp_path: Path) -> None:
    images = pixels(2, 6, 5)
    with (tmp_path / "x.NPY").open("wb") as file:
        np.save(file, images)
    np.savez_compressed(tmp_path / "x.npz", images=images, other=np.zeros(3))
    for name in ("x.NPY", "x.npz"):
        (found,) = read_unlabelled([tmp_path / name], (1, 6, 5))
        assert np.array_equal(found.images[:, 0].numpy(), images)
    np.save(tmp_path / "objects.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(DataError, match="need pickle"):
        read_unlabelled([tmp_path / "objects.npy"], (1, 6, 5))


def test_npy_files_side_by_side(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    np.save(own / "X.npy", pixels(20, 4, 4))
    np.save(own / "y.npy", np.arange(20) % 2)
    data = load(own / "X.npy")
    assert (data.name, data.source, sizes(data)) == ("own", ".npy files", (16, 4))
    assert load(own).identity == data.identity
    np.save(own / "other.npy", pixels(20, 4, 4))
    with pytest.raises(DataError, match=r"other\.npy: x\.npy and y\.npy beside it"):
        load(own / "other.npy")
    np.save(own / "X.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(DataError, match="need pickle"):
        load(own)
    (own / "y.npy").unlink()
    with pytest.raises(DataError, match="needs the arrays x_train, y_train"):
        load(own)


def csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_csv_file(tmp_path: Path) -> None:
    rows = [
        f"{n},{n / 2},{'true' if n % 2 else 'false'},{'ape' if n % 3 else 'bee'}" for n in range(30)
    ]
    data = load(csv(tmp_path / "own.csv", "size,weight,tame,Class", *rows))
    assert (data.name, data.class_names, data.shape) == ("own", ("ape", "bee"), (3,))
    assert (data.scale, sizes(data)) == (1.0, (24, 6))
    both = torch.cat([data.train_images, data.test_images])
    assert sorted(both.tolist()) == [[n, n / 2, n % 2] for n in range(30)]
    assert "features size, weight, tame, from 0 to 29" in data.note
    german = [row.replace(",", ";").replace(".", ",") for row in rows]
    same = load(csv(tmp_path / "de.csv", "size;weight;tame;Class", *german))
    assert same.identity.sha256 == data.identity.sha256
    tabs = [row.replace(",", "\t") for row in rows]
    again = load(csv(tmp_path / "t.tsv", "size\tweight\ttame\tClass", *tabs))
    assert again.identity.sha256 == data.identity.sha256
    bom = tmp_path / "bom.csv"
    bom.write_text("\n".join(["size,weight,tame,Class", *rows]), encoding="utf-8-sig")
    assert load(bom).identity.sha256 == data.identity.sha256
    index = [f"{n},{row}" for n, row in enumerate(rows)]
    left = load(csv(tmp_path / "index.csv", ",size,weight,tame,Class", *index))
    assert left.identity.sha256 == data.identity.sha256
    assert "a column without a name was left out" in left.note


def test_types_are_told_by_all_rows(tmp_path: Path) -> None:
    rows = [f"{n},{'true' if n % 2 else 'false'}" for n in range(150_000)]
    data = load(csv(tmp_path / "long.csv", "a,y", *rows, "0.5,true"))  # whole numbers till here
    assert data.class_names == ("false", "true")
    assert 0.5 in torch.cat([data.train_images, data.test_images])
    wide = [",".join(str(n % 7) for n in range(5_000)) + f",{y}" for y in (0, 1) * 3]
    names = ",".join(f"gene_number_{n}_of_many_that_there_are" for n in range(5_000))
    assert load(csv(tmp_path / "wide.csv", names + ",y", *wide)).shape == (5_000,)


def test_a_parquet_file_that_claims_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nispa.data.archives.MOST_UNPACKED", 10_000)
    constant = pa.table({"a": [0] * 9000, "label": [0, 1] * 4500})
    with pytest.raises(DataError, match="packed file may; give fewer rows or columns"):
        load(write(tmp_path / "a.parquet", constant))
    monkeypatch.setattr("nispa.data.parquet.MOST_ROWS", 5)
    with pytest.raises(DataError, match="6 rows are more than 5, the most"):
        load(write(tmp_path / "b.parquet", table(6)))


def test_the_label_column_by_name(tmp_path: Path) -> None:
    rows = [f"{n},{n % 2}" for n in range(20)]
    path = csv(tmp_path / "own.csv", "a,b", *rows)
    with pytest.raises(DataError, match="it has a, b: say which one with label="):
        load(path)
    wide = csv(
        tmp_path / "wide.csv", "a,b,c,d,e,f,kind", *(f"1,2,3,4,5,6,{n % 2}" for n in range(9))
    )
    with pytest.raises(DataError, match=r"a, b, c, d, e and 2 more \(the last is kind\)"):
        load(wide)
    scenario = build_scenario("split", seed=0, options={"dataset": str(path), "label": "b"})
    assert scenario.class_names == ("0", "1")
    assert scenario.settings["options"]["label"] == "b"
    with pytest.raises(DataError, match="has no column c; it has a, b"):
        load(path, label="c")
    for name in ("digits", str(tmp_path / "x.npz")):
        np.savez(tmp_path / "x.npz", x=pixels(20, 2, 2), y=np.arange(20) % 2)
        with pytest.raises(DataError, match="has no columns, so label=b names none"):
            load(name, label="b")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["a,y", "1,0"], "class '0' has one image"),
        (["a,y"], "needs a line of names and lines of values"),
        (["1.5,2,0", "2,3,1"], "its first line holds values"),
        (["a,a,y", "1,2,0"], "two columns are called 'a'"),
        (["a,y", "red,0", "blue,1"], "column a holds 'red' where a feature is a number"),
        (["a,y", "1,0", ",1"], "column a has no value in row 1"),
        (["a,y", "1,0", "inf,1"], "not a finite number"),
        (["a,y", "1,0.5", "2,1"], "column y has 0.5 as a label"),
        (["a,y", "1,0", "2,"], "row 1 has no label"),
        (["a,y", "1,0", "2,3,4"], "not a readable CSV file"),
        (["y,z", "1,0"], "column z|needs two"),
        (["y", "1", "0"], "has no column of features beside y"),
    ],
)
def test_unusable_csv(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load(csv(tmp_path / "a.csv", *lines))


def test_tables_in_parts(tmp_path: Path) -> None:
    rows = [f"{n},{n % 2}" for n in range(20)]
    csv(tmp_path / "own" / "train.csv", "a,y", *rows)
    csv(tmp_path / "own" / "test.csv", "y,a", *(f"{n % 2},{n}" for n in range(6)))
    data = load(tmp_path / "own")
    assert sizes(data) == (20, 6)
    assert data.test_images.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    csv(tmp_path / "own" / "test.csv", "y,b", *(f"{n % 2},{n}" for n in range(6)))
    with pytest.raises(DataError, match="has no column a, as the training table has"):
        load(tmp_path / "own")


def test_parquet_without_images(tmp_path: Path) -> None:
    plain = pa.table({"a": [1, 2] * 10, "b": [0.5, 1.5] * 10, "label": ["x", "y"] * 10})
    data = load(write(tmp_path / "own.parquet", plain))
    assert (data.shape, data.class_names, sizes(data)) == ((2,), ("x", "y"), (16, 4))
    series = pa.table({"wave": [[float(n), 2.0, 3.0] for n in range(20)], "label": [0, 1] * 10})
    data = load(write(tmp_path / "series.parquet", series))
    assert data.shape == (3,)
    uneven = pa.table({"wave": [[1.0], [1.0, 2.0]], "label": [0, 1]})
    with pytest.raises(DataError, match="column wave holds lists of different length"):
        load(write(tmp_path / "uneven.parquet", uneven))
    for shaping in (Shaping(resize=(4, 4)), Shaping(crop=True), Shaping(grey=True)):
        with pytest.raises(DataError, match="rows of 2 features are no images to change"):
            load(tmp_path / "own.parquet", shaping=shaping)


def test_each_feature_is_standardised_by_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large, small = rng.normal(50_000, 9_000, 200), rng.normal(0, 0.01, 200)
    content = pa.table({"a": large, "b": small, "c": [7.0] * 200, "y": [0, 1] * 100})
    path = write(tmp_path / "own.parquet", content)
    how: dict[str, Any] = {"dataset": str(path), "normalise": True, "validation": 0.0}
    train = build_scenario("split", seed=0, options=how).tasks[0].train
    values = train.batch(slice(None))[0]
    assert torch.allclose(values.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(values[:, :2].std(0, correction=0), torch.ones(2), atol=1e-3)
    moved = build_scenario("permuted-mnist", seed=0, options=how | {"tasks": 2}).tasks[1].train
    order = moved.pixel_order
    assert order is not None
    both = moved.batch(slice(None))[0], values[:, order]
    assert torch.allclose(both[0], both[1])
