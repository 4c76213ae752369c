from __future__ import annotations

import gzip
import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nispa.data import sources
from nispa.data.catalog import CATALOG, NAMES
from nispa.data.emnist import stored_names
from nispa.data.finding import find, list_files, name_of
from nispa.data.idx import idx_md5
from nispa.data.sources import available, load
from nispa.errors import DataError, UnknownNameError
from tests.data.makers import idx_bytes, image_bytes, labels, pixels, write_mnist


def write_emnist(folder: Path, split: str, classes: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for place, name in enumerate(stored_names(split)):
        values = pixels(classes, 28, 28) if place % 2 == 0 else labels(classes, classes) + first
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values.astype(np.uint8))))
    return folder


@pytest.mark.parametrize("inside", ["mnist", "MNIST/raw", "a/b/mnist"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_is_found_by_its_folder(tmp_path: Path, inside: str, end: str) -> None:
    root = tmp_path / "data"
    write_mnist(root / inside, end=end)
    data = load("mnist", folder=root, download=False)
    assert (len(data.train_labels), len(data.test_labels)) == (20, 10)
    assert np.array_equal(data.train_images[:, 0].numpy(), pixels(20, 28, 28, seed=1))
    assert data.identity.canonical is False
    assert "20 instead of 60,000 training images" in data.identity.note
    with pytest.raises(DataError, match="fashion-mnist: not found in"):
        load("fashion-mnist", folder=root, download=False)
    # The folder of the data set itself will do, too, and so will its path as a data set.
    own = load("mnist", folder=root / inside, download=False)
    assert own.identity == data.identity
    path = load(root / inside)
    assert (path.identity.sha256, path.source) == (data.identity.sha256, "IDX files")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/fashion-mnist", "fashion-mnist"),
        ("data/FashionMNIST/raw", "fashion-mnist"),
        ("data/mnist", "mnist"),
        ("data/fashion_mnist/mnist", "mnist"),
        ("data/qmnist", "another"),
        ("data/emnist-balanced-subset", "emnist-balanced"),
        ("data/cifar-10-batches-bin", "cifar10"),
        ("data/cifar100", "cifar100"),
        ("data/x/raw", None),
    ],
)
def test_names_of_folders(path: str, name: str | None) -> None:
    assert name_of(Path("/") / path) == name


def test_content_comes_before_the_name_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    write_mnist(root / "mnist")
    md5 = idx_md5(torch.arange(10))  # of the test labels that write_mnist writes
    fashion = replace(CATALOG["fashion-mnist"], content_md5=("", "", "", md5))
    catalog = {**CATALOG, "fashion-mnist": fashion}
    monkeypatch.setattr("nispa.data.finding.CATALOG", catalog)
    monkeypatch.setattr("nispa.data.sources.CATALOG", catalog)
    assert load("fashion-mnist", folder=root, download=False).name == "fashion-mnist"
    with pytest.raises(DataError, match="mnist: not found"):
        load("mnist", folder=root, download=False)


def test_canonical_only_when_every_checksum_matches(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    data = load("mnist", folder=tmp_path, download=False)
    arrays = (data.train_images[:, 0], data.train_labels, data.test_images[:, 0], data.test_labels)
    md5s = [idx_md5(each) for each in arrays]
    entry = replace(CATALOG["mnist"], train=20, test=10, content_md5=tuple(md5s))
    assert sources.judge(entry, data, "") == (True, "verified by MD5 of its content")
    wrong = replace(entry, content_md5=(*md5s[:3], "0"))
    assert sources.judge(wrong, data, "") == (
        False,
        "not the canonical data set: other test labels",
    )
    unknown = replace(entry, content_md5=())
    canonical, note = sources.judge(unknown, data, "")
    assert not canonical
    assert "not verified: as many images as the canonical data set" in note


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="mnist: t10k-labels-idx1-ubyte is missing"):
        load("mnist", folder=tmp_path, download=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels(9, 10)))
    with pytest.raises(DataError, match="10 images but 9 labels"):
        load("mnist", folder=tmp_path, download=False)
    wrong = labels(10, 10)
    wrong[4] = 10
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(wrong))
    with pytest.raises(DataError, match="label 10 of image 4 is outside its 10 classes"):
        load("mnist", folder=tmp_path, download=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"junk")
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: not an IDX file"):
        load("mnist", folder=tmp_path, download=False)


def test_data_folder_must_be_a_readable_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist; check folder="):
        load("digits", folder=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is not a folder"):
        load("mnist", folder=tmp_path / "file")
    if os.geteuid():  # root reads everything
        (tmp_path / "locked").mkdir(mode=0)
        with pytest.raises(DataError, match="cannot be read"):
            load("mnist", folder=tmp_path / "locked")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cifar100: not found in .*empty; place cifar-100-binary"):
        load("cifar100", folder=tmp_path / "empty", download=False)


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'minst'; did you mean 'mnist'"):
        load("minst")
    with pytest.raises(UnknownNameError, match="'fmnist'; did you mean 'fashion-mnist'"):
        load("fmnist")
    with pytest.raises(DataError, match="mnist does not exist"):
        load(Path("./mnist"))  # a path, although its text is a name
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        load(tmp_path / "nothing.npz")
    (tmp_path / "a.mat").write_text("")
    with pytest.raises(DataError, match="unknown kind of file"):
        load(tmp_path / "a.mat")


def test_emnist_letters_start_at_one_and_are_turned(tmp_path: Path) -> None:
    folder = write_emnist(tmp_path / "x", "letters", 26, first=1)
    data = load("emnist-letters", folder=folder, download=False)
    assert data.train_labels.tolist() == list(range(26))
    assert data.class_names[25] == "z"
    upright = pixels(26, 28, 28).transpose(0, 2, 1)
    assert np.array_equal(data.train_images[:, 0].numpy(), upright)


def test_emnist_archive_in_the_folder(tmp_path: Path) -> None:
    folder = write_emnist(tmp_path / "x", "digits", 10)
    root = tmp_path / "data"
    root.mkdir()
    with zipfile.ZipFile(root / "gzip.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"gzip/{file.name}")
    data = load("emnist-digits", folder=root, download=False)
    assert (data.source, data.canonical) == ("EMNIST archive gzip.zip", False)
    loose = load("emnist-digits", folder=folder, download=False)
    assert loose.identity.sha256 == data.identity.sha256
    known = hashlib.md5((root / "gzip.zip").read_bytes()).hexdigest()
    entry = replace(CATALOG["emnist-digits"], archives={"gzip.zip": known})
    found = find(entry, list_files(root))
    assert found is not None
    assert sources.read_found(entry, found).identity.canonical


def test_a_damaged_image_in_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(2):
            content = image_bytes(pixels(1, 4, 4)[0])
            (tmp_path / "pets" / name / f"{number}.png").write_bytes(content)
    (tmp_path / "pets" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dog/1\.png: not a readable image"):
        load(tmp_path / "pets")


def test_available(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    write_emnist(tmp_path / "x", "letters", 26, first=1)
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte").write_bytes(b"")
    seen = {each.name: each for each in available(tmp_path)}
    assert tuple(seen) == NAMES
    assert [name for name, each in seen.items() if each.found] == [
        "digits",
        "mnist",
        "emnist-letters",
    ]
    assert seen["mnist"].where == f"IDX files in {tmp_path / 'mnist'}"
    assert "train-labels-idx1-ubyte is missing" in seen["fashion-mnist"].where
    assert "cifar-10-binary.tar.gz" in seen["cifar10"].how
    assert not any(each.found for each in available() if each.name != "digits")


def test_real_mnist_is_canonical(data_dir: Path) -> None:
    data = load("mnist", folder=data_dir, download=False)
    assert (len(data.train_labels), len(data.test_labels)) == (60_000, 10_000)
    assert data.identity.canonical
    assert data.identity.note == "verified by MD5 of its content"
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    own = load("mnist", folder=data_dir / "mnist", download=False)
    assert own.identity == data.identity


def test_real_fashion_mnist_is_canonical(data_dir: Path) -> None:
    data = load("fashion-mnist", folder=data_dir, download=False)
    assert data.identity.canonical
    assert data.class_names[9] == "Ankle boot"


def test_real_emnist_subset_is_named(data_dir: Path) -> None:
    data = load("emnist-balanced", folder=data_dir, download=False)
    assert data.identity.canonical is False
    assert "77,805 instead of 112,800 training images" in data.identity.note
    assert data.classes == 47
    # Upright: an averaged capital L (class 21) has its ink on the left and at the bottom.
    mean = data.train_images[data.train_labels == 21].float().mean(0)[0]
    assert mean[:, :14].sum() > mean[:, 14:].sum()
    assert mean[14:].sum() > mean[:14].sum()


def test_real_cifar10_in_parquet(data_dir: Path, tmp_path: Path) -> None:
    # The test images alone, twice, since decoding the 50,000 training images takes seconds.
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for part in ("train", "test"):
        source = data_dir / "cifar10-jpeg" / "test-00000-of-00001.parquet"
        (folder / f"{part}-00000-of-00001.parquet").symlink_to(source)
    data = load("cifar10", folder=tmp_path, download=False)
    assert data.shape == (3, 32, 32)
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.class_names[0] == "airplane"
    assert "stored as JPEG, which is lossy" in data.identity.note
    assert data.identity.canonical is False
