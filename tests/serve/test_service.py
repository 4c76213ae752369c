"""A learner that answers and is taught: whole or not at all, not at the cost of old answers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import nispa
from nispa.errors import BusyError, InputError, NotLearnedError, OutputError
from nispa.serve import service as serving
from nispa.serve.bodies import Lesson
from nispa.serve.jobs import ENDED, Job
from nispa.serve.probes import Probes
from nispa.serve.service import QueueFullError, Service, Setup

from .small import examples, lesson, saved


def ended(job: Job) -> Job:
    until = time.monotonic() + 120
    while job.state not in ENDED:
        assert time.monotonic() < until, job.as_json()
        time.sleep(0.02)
    return job


def learn_here(job: Job, given: Lesson, learner: nispa.Learner, setup: Setup) -> bytes:
    """In place of another process."""
    file = setup.path.parent / "copy.safetensors"
    learner.save(file)
    copy = nispa.Learner.load(file)
    copy.learn(given.images, given.labels, name=given.name, progress=False)
    copy.save(file)
    return file.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path / "learner.safetensors")


def test_a_task_is_learned_by_another_process_while_old_answers_stay(file: Path) -> None:
    service = Service(Setup(file))
    images, _ = examples((0, 1))
    before, scores = service.answer(images, None, 1), service.learner.scores(images, 0)
    job = service.teach(lesson("second", (2, 3)))
    answers = 0
    while job.state not in ENDED:
        if len(service.learner.tasks) == 1:
            assert service.answer(images, None, 1) == before
            answers += 1
        time.sleep(0.01)
    assert answers > 5
    assert (job.state, job.task, job.error) == ("learned", 2, "")
    told = job.old_answers
    assert told is not None
    assert told["unchanged"]
    assert (told["tasks"], told["probe_images"], told["logits_compared"]) == (1, 256, 512)
    assert service.answer(images, None, "first") == before
    new, labels = examples((2, 3))
    found = service.answer(new, None, "second")
    assert np.mean([each["labels"][0]["label"] for each in found] == np.array(labels)) > 0.9
    assert service.close() == []
    loaded = nispa.Learner.load(file)
    assert loaded.task_names == ["first", "second"]
    assert np.array_equal(loaded.scores(images, 0), scores)
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_examples_taught_become_probes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "learn_apart", learn_here)
    service = Service(Setup(file))
    for name, classes in (("b", (2, 3)), ("c", (4, 5))):
        job = ended(service.teach(lesson(name, classes)))
        assert job.state == "learned", job.error
    told = job.old_answers
    assert told is not None
    assert (told["tasks"], told["probe_images"]) == (2, 256 + 40)
    assert told["logits_compared"] == 2 * 296 * 2
    service.close()


def test_a_task_that_changes_old_answers_is_dropped_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "learn_apart", learn_here)
    file = saved(tmp_path / "learner.safetensors", "finetune")
    content = file.read_bytes()
    service = Service(Setup(file))
    job = ended(service.teach(lesson("second", (2, 3))))
    assert job.state == "failed"
    assert "--allow-forgetting" in job.error
    assert job.old_answers is not None
    assert job.old_answers["logits_changed"] > 0
    assert len(service.learner.tasks) == 1
    assert file.read_bytes() == content
    service.close()
    service = Service(Setup(file, forgetting=True))
    job = ended(service.teach(lesson("second", (2, 3))))
    assert job.state == "learned"
    assert job.old_answers is not None
    assert not job.old_answers["unchanged"]
    assert len(nispa.Learner.load(file).tasks) == 2
    service.close()


def test_one_bit_of_one_logit_counts_as_changed(file: Path) -> None:
    learner = nispa.Learner.load(file)
    probes = Probes.of_shape((1, 4, 4))
    before = probes.answers(learner)
    assert probes.compare(before, learner).unchanged
    value = before[0][17, 1]
    before[0][17, 1] = torch.nextafter(value, torch.tensor(torch.inf))
    compared = probes.compare(before, learner)
    assert (compared.unchanged, compared.changed, compared.changed_labels) == (False, 1, 0)


def test_what_cannot_be_written_is_not_learned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(serving, "learn_apart", learn_here)
    service = Service(Setup(file))
    content = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(serving, "write_atomic", full)
        job = ended(service.teach(lesson("second", (2, 3))))
    assert (job.state, job.error) == ("failed", "the disk is full")
    assert len(service.learner.tasks) == 1
    assert file.read_bytes() == content
    assert ended(service.teach(lesson("second", (2, 3)))).state == "learned"  # and it goes on
    service.close()


def test_a_file_that_another_program_wrote_is_left_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "learn_apart", learn_here)
    service = Service(Setup(file))
    other = nispa.Learner.load(file)
    other.learn(*examples((6, 7)), progress=False)
    other.save(file)
    content = file.read_bytes()
    job = ended(service.teach(lesson("second", (2, 3))))
    assert job.state == "failed"
    assert "another program changed" in job.error
    assert file.read_bytes() == content
    service.close()


def test_one_writer_and_any_number_of_readers(file: Path) -> None:
    service = Service(Setup(file))
    link = file.parent / "link.safetensors"
    link.symlink_to(file)
    code = (
        "import sys; from pathlib import Path\n"
        "from nispa.serve.service import Service, Setup\n"
        "Service(Setup(Path(sys.argv[1]))).close()"
    )
    done = subprocess.run([sys.executable, "-c", code, link], capture_output=True, text=True)
    assert "BusyError: another server teaches" in done.stderr
    with pytest.raises(BusyError, match="--read-only"):
        Service(Setup(link))
    reader = Service(Setup(file, teach=False))
    with pytest.raises(InputError, match="read-only"):
        reader.teach(lesson("second", (2, 3)))
    reader.close()
    service.close()
    Service(Setup(file)).close()


def test_a_runs_network_is_served_to_read_alone(file: Path) -> None:
    folder = file.parent / "run"
    folder.mkdir()
    (folder / "record.json").write_text("{}")
    network = file.rename(folder / "network.safetensors")
    for path in (folder, network):
        with pytest.raises(InputError, match="--read-only"):
            Service(Setup(path))


def test_tasks_are_called_off_and_dropped_as_a_whole(file: Path) -> None:
    content = file.read_bytes()
    service = Service(Setup(file, queue=2))
    first = service.teach(lesson("second", (2, 3)))
    second = service.teach(lesson("third", (4, 5)))
    with pytest.raises(QueueFullError):
        service.teach(lesson("fourth", (6, 7)))
    while first.state == "queued":
        time.sleep(0.01)
    service.drop(first.number)
    assert ended(first).state == "dropped"
    assert service.close() == [second]
    assert second.state == "dropped"
    assert file.read_bytes() == content


def test_a_process_that_dies_fails_its_task_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(Setup(file))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    job = ended(service.teach(lesson("second", (2, 3))))
    assert job.state == "failed"
    assert "code 1" in job.error
    assert service.answer(examples((0,))[0], None, 1)
    service.close()


def test_names_and_numbers_of_tasks(file: Path) -> None:
    service = Service(Setup(file))
    images, _ = examples((0,), 1)
    by_name = service.answer(images, None, "first", 2)
    assert by_name == service.answer(images, None, 1, 2) == service.answer(images, None, "1", 2)
    assert [len(each["labels"]) for each in by_name] == [2]
    assert sum(each["probability"] for each in by_name[0]["labels"]) == pytest.approx(1)
    for wrong in (0, 2, "2", "nobody", True, [1], 1.0, "9" * 5000):
        with pytest.raises(NotLearnedError, match=r"learned are: 1 \(first\)"):
            service.answer(images, None, wrong)
    for name in ("first", "12", "two\nlines", "x" * 300):
        with pytest.raises(InputError):
            service.teach(lesson(name, (2, 3)))
    assert service.jobs == []
    service.close()
