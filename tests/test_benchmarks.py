"""The benchmarks compare what they say: the same gradients, NISPA's structure, counts by hand."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from benchmarks import (
    any_model,
    bounds,
    family,
    gpu,
    kernels,
    memory,
    page,
    performance,
    published,
    startup,
    step,
    table,
)
from benchmarks.contestants import (
    Contestant,
    Dense,
    Masked,
    contestants,
    plain,
    reference_kernels,
    swapped,
)
from benchmarks.networks import Case, first, make_samples, settle
from benchmarks.others import Csr, SparselabLayer, others, probes, sparseprop_layers
from benchmarks.timing import in_turn, medians
from torch import Tensor, nn
from torch.nn import functional

from nispa.base.seeding import stream
from nispa.data.named import build_scenario
from nispa.data.tasks import Samples
from nispa.kernels.dispatch import in_use
from nispa.kernels.native import library
from nispa.methods.presets import resolve
from nispa.network.layers import SparseConv2d, SparseLayer
from nispa.network.models import NetworkConfig, SparseNetwork, build_network
from nispa.runs.folder import RunFolder
from nispa.runs.record import Record, measured
from nispa.sweep.plan import read_plan
from nispa.training.fit import ClassMask

from .extent import optional
from .records import priced, record

BATCH = 32
SHAPE = (3, 8, 8)
OUTPUTS = 6
SMALL = {
    "mlp": NetworkConfig(architecture="mlp", hidden=(24, 20), density=0.4),
    "convnet": NetworkConfig(architecture="convnet", channels=(6, 8), fc=(20,), density=0.4),
}


def small(net: str, share: float) -> SparseNetwork:
    network = build_network(SMALL[net], SHAPE, OUTPUTS, seed=0)
    if share:
        settle(network, share)
    return network


def data(share: float) -> tuple[Samples, ClassMask]:
    """Images with labels among the outputs that are not stable."""
    classes = range(int(share * OUTPUTS), OUTPUTS)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3 * BATCH, *SHAPE, generator=generator)
    labels = torch.randint(classes.start, OUTPUTS, (3 * BATCH,), generator=generator)
    return Samples(images, labels), ClassMask(tuple(classes), OUTPUTS, "slice", torch.device("cpu"))


def wanted_gradients(network: SparseNetwork, images: Tensor, labels: Tensor, lowest: int) -> Any:
    """Dense PyTorch with masks, written out: gradients at live positions by layer."""
    weights, x = {}, images
    assert isinstance(network.body, nn.Sequential)
    for part in network.body:
        if not isinstance(part, SparseLayer):
            x = part(x)
            continue
        weight = part.dense_weight().requires_grad_()
        weights[part.spec.name] = weight
        pattern = part.pattern.view(*part.shape, *[1] * len(part.spec.kernel))
        if isinstance(part, SparseConv2d):
            x = functional.conv2d(x, weight * pattern, part.dense_bias(), padding=part.padding)
        else:
            x = functional.linear(x, weight * pattern, part.dense_bias())
    functional.cross_entropy(x[:, lowest:], labels - lowest).backward()
    return {name: weight.grad for name, weight in weights.items()}


def gradients(contestant: Contestant, network: SparseNetwork) -> dict[str, Tensor]:
    """What a contestant's last step left, dense, by layer."""
    if isinstance(contestant.module, SparseNetwork):
        found = {}
        for name, layer in contestant.module.layers.items():
            full = torch.zeros(layer.position_count, *layer.spec.kernel)
            assert layer.weight.grad is not None
            full[layer.plastic_index] = layer.weight.grad
            found[name] = full.view(*layer.shape, *layer.spec.kernel)
        return found
    dense = [m.dense_gradient() for m in contestant.module.modules() if isinstance(m, (Dense, Csr))]
    return dict(zip(network.layers, dense, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("net", SMALL)
def test_all_compute_the_gradients_of_masked_pytorch(net: str, share: float) -> None:
    network = small(net, share)
    samples, mask = data(share)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = contestants(network, samples, BATCH, mask.loss, cache=True)
    found |= others(network, samples, BATCH, mask.loss, compiling=False)
    assert {"masked", "nispa", "nispa, reference", "dense, no masks"} <= set(found)
    assert ("torch CSR" in found) == (net == "mlp")
    assert ("masked, channels-last" in found) == (net == "convnet")
    index = torch.randperm(len(samples), generator=stream(0, "order"))[:BATCH]
    wanted = wanted_gradients(network, *samples.batch(index), lowest=int(share * OUTPUTS))
    for name, contestant in found.items():
        contestant()
        if name in ("sparseprop", "sparselab"):
            continue  # a test of their own
        for layer, gradient in gradients(contestant, network).items():
            own = network.layers[layer]
            live = own.pattern & ~own.frozen if "nispa" in name else own.pattern
            assert live.any()
            torch.testing.assert_close(
                gradient[live], wanted[layer][live], rtol=1e-4, atol=1e-6, msg=f"{name}, {layer}"
            )
            if "dense" not in name:
                assert not gradient[~own.pattern].any(), f"{name}, {layer}"
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), "a contestant trained the network of the others"


@pytest.mark.parametrize("package", ["sparseprop", "sparselab"])
def test_packages_compute_the_gradients_of_masked_pytorch(package: str) -> None:
    pytest.importorskip(package)
    network = small("mlp", 0.0)
    samples, _ = data(0.0)
    images, labels = samples.batch(slice(BATCH))
    make = SparselabLayer if package == "sparselab" else sparseprop_layers(network, images)
    module = swapped(network, make)
    functional.cross_entropy(module(images), labels).backward()
    wanted = wanted_gradients(network, images, labels, 0)
    found = [in_order(value.grad) for value in module.parameters() if value.grad is not None]
    for name, layer in network.layers.items():
        of_layer = in_order(wanted[name][layer.pattern])
        assert any(
            grad.shape == of_layer.shape and torch.allclose(grad, of_layer, rtol=1e-4, atol=1e-6)
            for grad in found
        ), name


def in_order(gradient: Tensor) -> Tensor:
    """All that is not zero, rising: packages store values in orders of their own."""
    flat = gradient.flatten()
    return flat[flat != 0].sort().values


def test_a_masked_layer_keeps_dead_weights_out() -> None:
    layer = small("mlp", 0.0).layers["fc1"]
    module = Masked(layer)
    with torch.no_grad():
        module.weight[~layer.pattern] = 7.0
    x = torch.ones(1, layer.shape[1])
    torch.testing.assert_close(module(x)[0], layer.dense_weight().sum(1) + layer.dense_bias())


def test_the_reference_contestant_runs_on_the_reference() -> None:
    outside = in_use().name
    with reference_kernels():
        assert in_use().name == "reference"
    assert in_use().name == outside


# The stable structure.


@pytest.mark.parametrize("net", SMALL)
def test_stable_is_nispas_structure(net: str) -> None:
    network = build_network(SMALL[net], SHAPE, OUTPUTS, seed=0)
    live = {name: layer.live_count for name, layer in network.layers.items()}
    stable = settle(network, 0.5)
    sizes = {group.name: int(stable[group.name].sum()) for group in network.topology.groups}
    assert sizes["input"] == network.topology.group("input").size
    assert all(
        sizes[group.name] == group.size // 2
        for group in network.topology.groups
        if group.role != "input"
    )
    for name, layer in network.layers.items():
        sources = stable[layer.spec.source].repeat_interleave(layer.spec.block)
        targets = stable[layer.spec.target]
        into_stable = layer.pattern[targets]
        assert not into_stable[:, ~sources].any(), "a plastic unit feeds a stable one"
        assert layer.live_count == live[name]
        assert torch.equal(layer.frozen, layer.pattern & targets[:, None] & sources[None])
        assert layer.frozen.any()
        assert layer.frozen_bias_index.tolist() == targets.nonzero().squeeze(1).tolist()
        assert layer.bias_index.tolist() == (~targets).nonzero().squeeze(1).tolist()


def test_the_first_share_of_units() -> None:
    assert first(4, 0.5).tolist() == [True, True, False, False]
    assert first(3, 0.0).tolist() == [False, False, False]
    assert first(3, 1.0).tolist() == [True, True, True]


def test_labels_are_those_that_are_learned() -> None:
    case = Case("convnet", 0.1, 128, stable=0.7)
    assert case.classes == (7, 8, 9)
    assert set(make_samples(case).labels.tolist()) == {7, 8, 9}


# The command lines.


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_of_the_sweep_is_a_command_line(quick: bool) -> None:
    found = performance.cases([2, 1], quick=quick) + performance.alternatives(2, quick=quick)
    assert len(set(performance.cases([2, 1], quick=quick))) == (20 if quick else 28)
    for case in found:
        parsed, _ = step.parse(step.command_line(case))
        assert parsed == case


def test_quick_parses() -> None:
    assert performance.parser().parse_args(["--quick"]).quick
    assert not performance.parser().parse_args([]).quick


def test_too_many_stable_outputs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step.parse(["--net", "convnet", "--stable", "0.9"])
    assert "leaves 1 outputs to learn" in capsys.readouterr().err


def test_turns_alternate_and_medians_are_medians() -> None:
    order: list[str] = []
    work = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turn(work, rounds=2, least=0.0)
    assert "".join(order) == "aabb" + "abab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}


def test_a_different_loss_is_noticed() -> None:
    same = {"masked": lambda: torch.tensor(1.0), "other": lambda: torch.tensor(1.0001)}
    seconds, wrong = step.check_losses(same, same)
    assert set(seconds) == {"masked", "other"}
    assert wrong == {}
    odd = {**same, "other": lambda: torch.tensor(math.nan)}
    with pytest.raises(RuntimeError, match=r"'other' is nan, of 'masked' 1\.0"):
        step.check_losses(odd, ["masked", "other"])
    assert step.check_losses(odd, ["masked"])[1] == {"other": "nan"}


def test_what_others_compute_wrongly_is_named_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        step, "others", lambda *_, **__: {"torch.compile": lambda: torch.tensor(math.nan)}
    )
    result = step.measure(Case("mlp", 0.1, 8, rounds=1, threads=1), alternatives=True)
    assert "torch.compile" not in result["seconds"]
    step.show(result)
    assert "not timed: its first loss is nan" in capsys.readouterr().out


# Kernels alone, memory.


def test_operations_of_the_convolutions_by_hand() -> None:
    found, _ = library()
    case = Case("convnet", 0.01, 128, threads=torch.get_num_threads(), rounds=1)
    result = kernels.measure(case)
    if found is None:
        assert result["layers"] == {}
        return
    layers, images = result["layers"], result["images"]
    assert set(layers) == {"conv1", "conv2", "conv3", "conv4"}
    assert set(layers["conv1"]) == {"forward", "weight gradient"}
    assert set(layers["conv2"]) == {"forward", "weight gradient", "input gradient"}
    assert layers["conv1"]["forward"]["gflop"] * 1e9 == 2 * 64 * 3 * 9 * 32 * 32 * images
    live = round(0.01 * 128 * 128)
    assert layers["conv4"]["input gradient"]["gflop"] * 1e9 == 2 * live * 9 * 16 * 16 * images


def test_the_rate_of_a_backward_pass_leaves_copying_out() -> None:
    work = {"a forward": (int, 3e9), "a backward": (int, 6e9), "a copy": (int, 0.0)}
    taken = {"a forward": 1.0, "a backward": 4.0, "a copy": 1.0}
    assert bounds.rates(work, taken) == {"a forward": 6.0, "a backward": 4.0}


@pytest.mark.slow
@pytest.mark.skipif(library()[0] is None or not shutil.which("c++"), reason="needs a compiler")
def test_bounds_and_passes_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bounds", "--rounds", "1"])
    threads = torch.get_num_threads()
    bounds.main()
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert re.search(r"registers alone +\d+\.\d GFLOP/s +100%", shown)
    assert "convnet 6 linear backward" in shown


def test_counted_bytes_by_hand() -> None:
    samples, mask = data(0.0)
    network = small("mlp", 0.0)
    inputs, hidden = 192 * 24 + 24 * 20 + 20 * OUTPUTS, 24 + 20 + OUTPUTS
    contestant = plain(swapped(network, Masked), samples, BATCH, mask.loss)
    contestant()
    assert memory.count(contestant) == {
        "weights and biases": 4 * (inputs + hidden),
        "gradients": 4 * (inputs + hidden),
        "Adam's state": 8 * (inputs + hidden) + 4 * 6,  # and a count of steps for each parameter
        "masks": 4 * inputs,
    }
    contestant = contestants(network, samples, BATCH, mask.loss, cache=False)["nispa"]
    contestant()
    counted = memory.count(contestant)
    live = sum(layer.live_count for layer in network.layers.values())
    assert counted["weights and biases"] == 4 * (live + hidden)
    assert counted["positions of live values"] == 8 * (live + hidden)
    if library()[0] is not None:
        assert counted["kernels: tables of connections"] > 4 * live


def test_memory_that_is_met_twice_counts_once() -> None:
    array, tensor = np.zeros(4), torch.zeros(3)
    things = {"a": [array, array[:2]], "b": (tensor, tensor[1:], tensor.numpy())}
    found = list(memory.held(things, set()))
    assert len(found) == 2
    assert found[0] is array


def test_the_peak_of_a_process_is_in_bytes() -> None:
    pytest.importorskip("resource")
    assert memory.peak_resident() > 10 * 2**20


def test_the_first_step_of_a_fresh_process_is_a_program() -> None:
    names: dict[str, Any] = {}
    exec(startup.FIRST_STEP, names)
    assert names["network"].layers["fc1"].weight.grad is not None


# The page.


def made_step(net: str, density: float, live: int, ms: float, **changed: Any) -> dict[str, Any]:
    """A case as ``step.measure`` gives it, with times that are easy to reckon with."""
    seconds = {"peak": 0.1, "masked": 0.2, "nispa": ms / 1e3, "nispa, reference": 0.3}
    more = {"masked, channels-last": 0.1} if net == "convnet" else {}
    return {
        "net": net,
        "density": density,
        "batch": 64,
        "stable": 0.0,
        "cache": True,
        "threads": 2,
        "live": live,
        "kept_bytes": 5_000_000,
        "first_seconds": {"masked, torch.compile": 12.0},
        "wrong": {},
        "seconds": {name: [taken] * 3 for name, taken in {**seconds, **more}.items()},
        **changed,
    }


def made_results() -> dict[str, Any]:
    passes = {which: {"gflop": 2.0, "seconds": 0.01} for which in kernels.PASSES}
    counted = {"weights and biases": 4_000_000}
    return {
        "quick": True,
        "rounds": 3,
        "cpu": "a processor",
        "capability": "AVX2",
        "torch": "2",
        "python": "3",
        "numpy": "2",
        "variables": {},
        "probes": {"a": "runs"},
        "kernels": {"name": "avx2", "reason": "compiled"},
        "packages": {"sparseprop": "", "sparselab": "0.2"},
        "steps": [
            made_step(net, density, live, ms)
            for net in ("convnet", "mlp")
            for density, live, ms in (
                (0.1, 100_000, 30.0),
                (0.2, 200_000, 50.0),
                (0.3, 300_000, 70.0),
            )
        ]
        + [made_step("mlp", 0.2, 200_000, 20.0, stable=0.9)],
        "alternatives": [
            made_step("mlp", 0.2, 200_000, 50.0, wrong={"sparselab": "nan"}),
            made_step("mlp", 0.1, 100_000, 30.0, wrong={"sparselab": "1.5"}),
        ],
        "kernels_alone": [
            {"density": 0.1, "threads": 2, "peak": 100.0, "peak_convolution": 400.0}
            | {"layers": {"conv1": passes}}
        ],
        "memory": [
            {"what": what, "counted": counted if what != "nothing" else {}, "peak_resident": 10**8}
            for what in memory.WHAT
        ],
        "startup": {"import nispa": 0.05},
    }


def test_the_page_round_trips(tmp_path: Path) -> None:
    by_hand = performance.PAGE.read_text()
    target = tmp_path / "performance.md"
    page.write_page(target, by_hand, [made_results()])
    once = target.read_text()
    page.write_page(target, once, [made_results()])
    assert target.read_text() == once
    assert (tmp_path / "assets" / page.PICTURE).read_bytes().startswith(b"\x89PNG")

    def without_tables(text: str) -> str:
        return re.sub(r"(?s)(<!-- begin (.+?) -->\n).*?(<!-- end \2 -->)", r"\1\3", text)

    assert without_tables(once) == without_tables(by_hand)
    assert once != without_tables(once)


def test_the_numbers_of_the_page_by_hand() -> None:
    made = page.sections([made_results(), made_results()])
    assert (
        "| 0.1 | 0% | – | 100,000 | 100 (channels-last) | 300 | 30.0 | **3.33** |"
        in made["convnet"]
    )
    assert (
        "| 0.2 | 90% | 5.00 MB with the pixels | 200,000 | 200 | 300 | 20.0 | **10.0** |"
        in made["mlp"]
    )
    assert "20.0 ms for each 100,000 live weights and 10.0 ms besides; R² = 1.0000" in made["lines"]
    assert (
        "All passes together 200 GFLOP/s: 200% of the dense product (100), 50%" in made["kernels"]
    )
    assert "| nispa | 50.0 | 30.0 |" in made["alternatives"]
    assert (
        "| sparselab 0.2 | wrong: first loss nan | wrong: first loss 1.5 |" in made["alternatives"]
    )
    assert "Not installed, so not timed: sparseprop." in made["alternatives"]
    assert "took 12.0 to 12.0 s" in made["alternatives"]
    assert "| ConvNet | 2 | 0.1 | 0% | 100 | 30.0 | **3.33** |" in made["instruction sets"]
    assert "not to be quoted" in made["machine"]


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="the page marks"):
        page.fill("<!-- begin machine -->\n<!-- end machine -->\n", {"mlp": ""})
    with pytest.raises(ValueError, match="does not end mlp"):
        page.fill("<!-- begin mlp -->\n", {"mlp": ""})


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.012345, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"),
     (1234.5, "1,230"), (-2.0, "-2.00")],
)  # fmt: skip
def test_three_digits(value: float, shown: str) -> None:
    assert page.number(value) == shown


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_what_does_not_run_on_a_cpu_says_so() -> None:
    answers = probes()
    assert answers["2:4 (`to_sparse_semi_structured`)"].startswith("does not run: ")
    assert answers["block-sparse (BSR) forward"] == "runs"


# Tables of runs.


def test_methods_side_by_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Means and deviations by hand: accuracies 81.25 and 62.5 of two seeds, one of a third run."""
    low = [[0.75, 0.5], [0.25, 1.0]]
    runs = {
        "a-s1": record(seed=1),
        "a-s2": record(seed=2, accuracy_matrix=low, metrics=measured(low, [0.5, 0.5])),
        "b-s1": record(
            seed=1,
            incremental="class",
            accuracy_matrix_task_agnostic=low,
            metrics_task_agnostic=measured(low),
        ),
    }
    runs |= {f"c-s{seed}-0123abc{seed}": record(seed=seed) for seed in (3, 4)}
    runs["c-s3-0123abc9"] = record(seed=3, config={"method": {"k": 7.0}})
    for name, each in runs.items():
        RunFolder.create(tmp_path / name, each)
    arguments = ["table", "--side-by-side", *(str(tmp_path / name) for name in runs)]
    with patch.object(sys, "argv", arguments):
        table.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:6] for row in rows] == [
        ["| a", "2", "71.88 (13.26)", "71.88 (13.26)", "–", "31.25 (26.52)"],
        ["| b", "1", "62.50", "81.25", "62.50", "50.00"],
        ["| c, variant 1", "2", "81.25 (0.00)", "81.25 (0.00)", "–", "12.50 (0.00)"],
        ["| c, variant 2", "1", "81.25", "81.25", "–", "12.50"],
    ]


def test_operations_are_means_in_their_units_or_left_out() -> None:
    def run(billions: int) -> Record:
        made = priced()
        spent = {"operations": {"forward": billions * 10**9}, "inference_operations": 3_200}
        tasks = [task.model_copy(update=spent) for task in made.per_task]
        return made.model_copy(update={"per_task": tuple(tasks)})

    rows = table.side_by_side({"counted": [run(1), run(1_500)], "not": [record()]})
    assert [row.split(" | ")[8:10] for row in rows[2:]] == [["1,501", "3"], ["–", "–"]]


@pytest.mark.parametrize("contestant", family.CONTESTANTS, ids=lambda each: each.method)
def test_both_ends_of_every_range_are_settings(
    contestant: family.Contestant, tmp_path: Path
) -> None:
    optional("optuna")
    from nispa.sweep.search import parse_range

    options = argparse.Namespace(scenario="split-digits", density=0.2, epochs=3)
    for end in (0, 1):
        ranges = dict(map(parse_range, contestant.ranges))
        params = {name: limits[end] for name, limits in ranges.items()}
        text = "\n".join(family.lines([(contestant, params)], options))
        (tmp_path / "plan.toml").write_text(text)
        cells = list(read_plan(tmp_path / "plan.toml").cells())
        assert {cell.seed for cell in cells} == set(family.SEEDS)
        for cell in cells:
            resolve(cell.method, "default", cell.scenario, (1, 8, 8), dict(cell.given))


def test_steps_on_a_graphics_card_are_measured_beside_masked_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu.main(["steps", "--device", "cpu", "--tiny", "--net", "mlp"])
    machine, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["device"] == "cpu"
    assert {"masked", "masked, bfloat16", "nispa", "nispa, TF32"} <= set(found["milliseconds"])
    assert all(each > 0 for each in found["milliseconds"].values())


def test_what_a_graphics_card_took_is_shown_as_tables() -> None:
    step = {"part": "step", "net": "mlp", "density": 0.2, "batch": 512, "stable": 0.7}
    lines = [
        {**step, "milliseconds": {"masked": 1.0, "nispa": 0.25}},
        {**step, "stable": 0.0, "milliseconds": {"masked": 2.0}},
        {"part": "run", "scenario": "efmnist", "seconds": 30.0, "accuracy": 0.5},
        {"part": "seeds", "scenario": "efmnist", "seeds": 2, "seconds": 9.0, "accuracies": [1, 0]},
    ]
    found = gpu.tables([json.dumps(line) for line in lines])
    assert "| nispa | 0.250 (4.0×) | – |" in found
    assert "MLP, batch 512, 70% stable" in found
    assert "| efmnist | 1 | 30.0 | 50.00 |" in found
    assert "| efmnist | 2 | 9.00 | 100.00, 0.00 |" in found


def test_a_whole_run_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "max_phases=3", "--set", "epochs_per_phase=1", "--device", "cpu"]
    gpu.main(["runs", "--scenario", "split-digits", "--out", str(tmp_path), *words])
    _, found = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{")
    assert found["scenario"] == "split-digits"
    assert found["phases"] == [3] * 5
    assert 0.3 < found["accuracy"] <= 1


@pytest.mark.parametrize("model", ["resnet18", "vit-tiny"])
def test_a_step_of_any_model_is_timed(model: str) -> None:
    arguments = ("width=4",) if model == "resnet18" else ("width=12", "heads=3", "blocks=1")
    found = any_model.measure(model, arguments=arguments, density=0.5, batch=4, side=8, rounds=1)
    assert found["seconds"].keys() == {"masked", "masked, channels-last", "dense", "nispa"}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["live"] < found["positions"]


REPOSITORY = """
from continuum.tasks import split_train_val

def training_CL(network, loss, optimiser, loader, *rest):
    assert network == "untouched"

class Loader:
    def __init__(self, samples):
        self.dataset = [image for image, label, _ in samples]

class Learner:
    def __init__(self, args, inputs, outputs, scenario_train, scenario_test):
        assert (args.batch_size, inputs, outputs) == (16, 64, 10)
        assert scenario_test[1].get_classes() == [2, 3]

    def task_train(self, number, taskset, val_set):
        train, validation = split_train_val(taskset, val_split=0.1)
        assert train.get_sample(0).shape == (1, 8, 8)
        for _ in range(5):
            training_CL("untouched", None, None, Loader(train))
"""


def test_the_published_code_runs_on_our_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "NISPA" / "NISPA"
    package.mkdir(parents=True)
    (package / "learner.py").write_text(REPOSITORY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = {"model": "mlp", "prune_perc": 80.0, "batch_size": 16, "learning_rate": 0.01}
    monkeypatch.setitem(published.OPTIONS, "split-digits", options)
    scenario = build_scenario("split-digits", seed=0)
    with patch.dict(sys.modules):
        found = published.published(scenario, tmp_path, seed=0, tasks=2, phases=3)
    assert found["phases"] == [3, 3]
    of_tasks = sum(len(task.train) for task in scenario.tasks[:2])
    assert found["samples"] == 3 * 5 * of_tasks
