"""Every kind of file that nispa reads: how to make a small one, and what is read from it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from nispa.data.cifar import read_cifar
from nispa.data.dataset import ImageData
from nispa.data.emnist import read_zip, stored_names
from nispa.data.folders import read_folder
from nispa.data.idx import read_idx
from nispa.data.npz import read_npz
from nispa.data.parquet import read_parquet
from nispa.errors import InputError
from nispa.learner import Learner
from nispa.methods import METHODS
from nispa.methods.saving import decode, encode
from nispa.reading import store
from nispa.reading.groups import flatten
from nispa.reading.imports import read_matrix
from nispa.reading.tables import render
from nispa.runs.checkpoints import FOLDER, Checkpoints
from nispa.runs.folder import EVENTS, RunFolder
from nispa.runs.record import RECORD, read_record
from nispa.runs.record import encode as encode_record
from nispa.tensorfile import digest
from nispa.training.pausing import EpochEnd, FitPause, Progress, best_of
from nispa.webpage import page, read_run
from tests.data.makers import idx_bytes, image_bytes, labels, pixels, python2_batch
from tests.fuzzing import Kind
from tests.methods.toy import FAST
from tests.records import five_tasks, record

Make = Callable[[Path], Path]


# What nispa writes.


def _network(method: str) -> Make:
    def make(folder: Path) -> Path:
        fast: dict[str, Any] = dict(FAST.get(method, {}))
        fast |= {"hidden": (3, 2), "density": 0.7, "batch_size": 8}
        fast |= {key: 1 for key in ("epochs", "epochs_per_phase", "max_phases") if key in fast}
        made = Learner(method, input_shape=(1, 2, 2), classes=4, tasks=2, standardise=True, **fast)
        for task in range(2):
            random = np.random.default_rng(task)
            images = random.integers(0, 256, (24, 2, 2), dtype=np.uint8)
            names = np.array([f"{task}a", f"{task}b"])[np.arange(24) % 2]
            made.learn(images, names, validation=0.25)
        made.save(folder / "network.safetensors")
        return folder / "network.safetensors"

    return make


def _read_network(path: Path) -> bytes:
    method, settings, names = decode(path)
    return encode(method, settings, names)


def _checkpoint(over: bool) -> Make:
    def make(folder: Path) -> Path:
        network, at = _training()
        optimiser = torch.optim.Adam(network.parameters())
        network(torch.ones(1, 3)).sum().backward()
        optimiser.step()
        if over:
            at.over, at.epoch, at.ends = True, 2, [EpochEnd(1, 0.5, 0.75, 8, 1.0)]
            at.best, at.best_epoch = best_of(at.ends)
        checkpoints = Checkpoints(folder, 0.0, "a run")
        checkpoints.begin(1)
        checkpoints.fit()
        checkpoints.reached(FitPause(over, lambda: at.save(network, optimiser, ())))
        (path,) = (folder / FOLDER).iterdir()
        return path

    return make


def _training() -> tuple[torch.nn.Module, Progress]:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2), Progress(torch.zeros((), dtype=torch.float64))


def _read_checkpoint(path: Path) -> Any:
    """What a run would take of it, put to use; a file that is passed over is as good as refused."""
    found = list(Checkpoints(path.parents[1], 0.0, "a run").begin(1))
    if not found:
        raise InputError("passed over")
    (state,) = found
    network, at = _training()
    at.load(state, network, torch.optim.Adam(network.parameters()), ())
    return digest(state.values, state.tensors)


def _record(folder: Path) -> Path:
    (folder / RECORD).write_bytes(encode_record(five_tasks()))
    return folder / RECORD


def _open_record(folder: Path) -> Path:
    """A record that another program has laid out anew, so that no checksum protects it."""
    (folder / RECORD).write_text(json.dumps(json.loads(encode_record(record()))))
    return folder / RECORD


def _show_record(path: Path) -> str:
    out = io.StringIO()
    found = read_record(path)
    Console(file=out, width=80).print(render(found))
    return out.getvalue() + str(store.summarise(found)) + str(flatten(found.config))


def _show_page(path: Path) -> bytes:
    return page([read_run(path.parent)])


def _events(folder: Path) -> Path:
    run = RunFolder(folder)
    for task in range(3):
        run.append_event({"event": "phase_start", "task": task, "phase": 1, "tau": None})
        for epoch in range(3):
            run.append_event({"event": "epoch", "task": task, "loss": 0.5 / (epoch + 1), "ü": "é"})
    return folder / EVENTS


def _read_events(path: Path) -> list[dict[str, Any]]:
    run = RunFolder(path.parent)
    found = run.read_events()
    run.cut_events(2)  # as a resume does
    run.read_events()
    return found


# Data.


def _content(data: ImageData) -> Any:
    return data.identity.sha256, data.class_names, data.scale


def _bytes(content: bytes, name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _idx(pack: Callable[[bytes], bytes] = bytes) -> Make:
    return _bytes(pack(idx_bytes(pixels(6, 7, 5))), "images-idx3-ubyte")


def _read_idx(path: Path) -> Any:
    values = read_idx(path, 3)
    return tuple(values.shape), values.numpy().tobytes()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _emnist(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "gzip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in stored_names("balanced"):
            values = pixels(4, 5, 5) if "idx3" in name else labels(4, 3)
            archive.writestr(f"gzip/{name}.gz", _gzip(idx_bytes(values)))
    return folder / "gzip.zip"


def _read_emnist(path: Path) -> Any:
    found = read_zip(path, stored_names("balanced"))
    return [(tuple(values.shape), values.numpy().tobytes()) for values in found]


def _npz(save: Any) -> Make:
    def make(folder: Path) -> Path:
        arrays = {"x_train": pixels(8, 4, 4), "y_train": labels(8, 2)}
        save(folder / "data.npz", **arrays, x_test=pixels(4, 4, 4), y_test=labels(4, 2))
        return folder / "data.npz"

    return make


def _parquet(**how: Any) -> Make:
    def make(folder: Path) -> Path:
        cells = [{"bytes": image_bytes(pixels(1, 5, 5, seed=n)[0]), "path": None} for n in range(8)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(cells, kind), "label": pa.array([n % 2 for n in range(8)])}
        pq.write_table(pa.table(columns), folder / "data.parquet", **how)
        return folder / "data.parquet"

    return make


def _read_parquet(path: Path) -> Any:
    return _content(read_parquet([path], name="data"))


def _cifar_batch(folder: Path) -> Path:
    batch = python2_batch(pixels(2, 3072), "labels", [3, 7])
    (folder / "test_batch").write_bytes(batch)
    return folder / "test_batch"


def _read_batch(path: Path) -> Any:
    ((images, classes),), _ = read_cifar(path.parent, [path.name], classes=10, binary=False)
    return images.numpy().tobytes(), classes.tolist()


def _cifar_binary(folder: Path) -> Path:
    rows = np.concatenate([labels(2, 2)[:, None], pixels(2, 3072)], axis=1)
    (folder / "test_batch.bin").write_bytes(rows.tobytes())
    return folder / "test_batch.bin"


def _read_binary(path: Path) -> Any:
    ((images, classes),), _ = read_cifar(path.parent, [path.name], classes=10, binary=True)
    return images.numpy().tobytes(), classes.tolist()


def _cifar_archive(folder: Path) -> Path:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("cifar/other.txt", "cifar/test_batch.bin", "cifar/last.txt"):
            content = b"\x01" + pixels(1, 3072).tobytes() if name.endswith("bin") else b"text" * 99
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (folder / "cifar.tar.gz").write_bytes(_gzip(out.getvalue()))
    return folder / "cifar.tar.gz"


def _read_archive(path: Path) -> Any:
    ((images, classes),), _ = read_cifar(path, ["test_batch.bin"], classes=10, binary=True)
    return images.numpy().tobytes(), classes.tolist()


def _images(kind: str, end: str) -> Make:
    def make(folder: Path) -> Path:
        for name in ("cat", "dog"):
            (folder / "photos" / name).mkdir(parents=True)
            for number in range(2):
                content = image_bytes(pixels(1, 9, 8, 3, seed=number)[0], kind)
                (folder / "photos" / name / f"{number}{end}").write_bytes(content)
        return folder / "photos" / "dog" / f"1{end}"

    return make


def _read_images(path: Path) -> Any:
    return _content(read_folder(path.parents[1]))


MATRIX = np.array([[0.9, 0.25, np.nan], [0.75, 0.8, 0.5], [0.7, 0.6, 1.0]])
CSV = "task,a,b,c\none,0.9,0.25,\ntwo,0.75,0.8,0.5\nthree,0.7,0.6,1.0\n"


def _npy(folder: Path) -> Path:
    np.save(folder / "matrix.npy", MATRIX)
    return folder / "matrix.npy"


def _matrix_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "matrix.npz", accuracy=MATRIX)
    return folder / "matrix.npz"


def _read_matrix(path: Path) -> Any:
    given = read_matrix(path)
    return given.matrix.shape, given.matrix.tobytes(), given.names, given.percent


KINDS: tuple[Kind, ...] = (
    *(
        Kind(f"network of {name}", _network(name), _read_network, exact=True)
        for name in METHODS
        if name
        in (
            *("nispa", "nispa-replay", "nispa-context", "ewc", "er"),
            *("packnet", "wsn", "supsup", "cbp", "redo", "spacenet", "nice"),
        )
    ),
    Kind("checkpoint in a fit", _checkpoint(False), _read_checkpoint, exact=True),
    Kind("checkpoint of a whole fit", _checkpoint(True), _read_checkpoint, exact=True),
    Kind("record", _record, lambda path: read_record(path, sealed=True), exact=True),
    Kind("record without checksum, shown", _open_record, _show_record),
    Kind("record without checksum, page", _open_record, _show_page),
    Kind("events", _events, _read_events),
    Kind("idx", _idx(), _read_idx),
    Kind("idx.gz", _idx(_gzip), _read_idx, exact=True),
    Kind("EMNIST's gzip.zip", _emnist, _read_emnist, exact=True),
    Kind("npz", _npz(np.savez), lambda path: _content(read_npz(path, seed=0)), exact=True),
    Kind(
        "npz, compressed",
        _npz(np.savez_compressed),
        lambda path: _content(read_npz(path, seed=0)),
        exact=True,
    ),
    Kind("Parquet", _parquet(), _read_parquet),
    Kind("Parquet, zstd", _parquet(compression="zstd"), _read_parquet),
    Kind(
        "Parquet, plain with checksums",
        _parquet(compression="none", use_dictionary=False, write_page_checksum=True),
        _read_parquet,
        exact=True,
    ),
    Kind("CIFAR pickle", _cifar_batch, _read_batch),
    Kind("CIFAR binary", _cifar_binary, _read_binary),
    Kind("CIFAR tar.gz", _cifar_archive, _read_archive, exact=True),
    *(
        Kind(f"image {kind}", _images(kind, end), _read_images)
        for kind, end in (
            ("PNG", ".png"),
            ("JPEG", ".jpg"),
            ("BMP", ".bmp"),
            ("GIF", ".gif"),
            ("PPM", ".ppm"),
            ("WEBP", ".webp"),
        )
    ),
    Kind("matrix csv", _bytes(CSV.encode(), "matrix.csv"), _read_matrix),
    Kind("matrix npy", _npy, _read_matrix),
    Kind("matrix npz", _matrix_npz, _read_matrix, exact=True),
)
