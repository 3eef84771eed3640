"""The benchmarks run at a tiny size, and what they time is what it stands for."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def bench():
    """Give a script of the folder as a module; scripts find each other there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module
        for name in [name for name, module in sys.modules.items() if _is_tool(module)]:
            del sys.modules[name]


def _is_tool(module):
    return str(getattr(module, "__file__", None) or "").startswith(f"{TOOLS}/") and "." not in module.__name__


@pytest.fixture(scope="module")
def peers(bench):
    return bench("bench_peers")


@pytest.fixture(scope="module")
def job(peers):
    model = peers.lora_llama(2, 32, 4, ("q_proj", "v_proj"))
    pool, targets = peers.texts(7, 8, 16, 0), peers.texts(3, 8, 16, 1)
    return peers.Job(model, pool, targets, batch_size=3, damping=0.5, folder="")


def test_our_tracin_is_that_of_autograd(peers, job):
    found, expected = peers.OURS["TracIn"](job)(), peers.autograd_tracin(job)()
    assert found.shape == (3, 7) and peers.difference(found, expected) < 1e-5


def test_our_datainf_has_the_damping_that_all_are_given(peers, job):
    v, g = (one_by_one(peers, job, items) for items in (job.targets, job.pool))
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for block in v:
        fit, aims = g[block].double(), v[block].double()
        weights = (aims @ fit.T) / (job.damping + fit.square().sum(1))
        expected += (aims - weights @ fit / len(fit)) / job.damping @ fit.T
    assert peers.difference(peers.OURS["DataInf"](job)().double(), expected) < 1e-5


def one_by_one(peers, job, items):
    """Each sample's gradient by block, flattened, from batches of one. [n, entries]"""
    parameters = peers.lora_parameters(job.model)
    losses = [peers.sample_losses(job.model, peers.Collator(0)([item])).sum() for item in items]
    rows = [torch.autograd.grad(loss, list(parameters.values())) for loss in losses]
    return {
        name: torch.stack([part.flatten() for part in column])
        for name, column in zip(parameters, zip(*rows, strict=True), strict=True)
    }


def test_the_mean_square_is_over_samples_and_all_entries(peers, job):
    found = torch.cat(list(one_by_one(peers, job, job.pool).values()), dim=1)
    assert peers.mean_square(job) == pytest.approx(float(found.double().square().mean()), rel=1e-5)


def test_ratios_of_the_passes(bench, monkeypatch):
    score_pass = bench("bench_score_pass")
    monkeypatch.setattr(score_pass, "llama", lambda layers, width: bench("plain_text").llama(2, 16))
    setting = score_pass.text_setting("llama", 20, 512, "cpu")
    assert setting.samples == 20 and sum(len(batch.uids) for batch in setting.tenth) == 2
    assert {stack.shape[0] for stack in setting.stacks.values()} == {16}
    seen, kind = [], type(setting.subject)
    losses = kind.losses
    monkeypatch.setattr(kind, "losses", lambda one, batch: seen.append(len(batch.uids)) or losses(one, batch))
    ways = {score_pass.forward: 20, score_pass.plain: 20, score_pass.score: 20, score_pass.both: 22}
    for way, samples in ways.items():
        seen.clear()
        way(setting)
        assert sum(seen) == samples
    found = score_pass.measure(setting, 1, [2])
    assert found["score / forward"] == pytest.approx(found["score / plain"] * found["plain / forward"])
    assert all(parameter.grad is None for parameter in setting.subject.module.parameters())
    weights = sum(block.rows * block.cols for block in setting.blocks)
    tokens = sum(batch.input_ids.numel() for batch in setting.batches)
    # a weight that learns takes a product forward and two backward per token
    assert 0 < score_pass.products(2, setting) < 2 * 20 * 4 * 6 * weights / (3 * 2 * tokens * weights)


def test_the_published_procedure_gives_our_scores(bench, tmp_path):
    reference = bench("bench_reference")
    reference.write_world(tmp_path, reference.WorldSizes(0, 6, 2, 0))
    model, reading = reference.open_subject("tiny", "cpu"), reference.Reading(tmp_path / "images")
    files = (tmp_path / "pool.json", tmp_path / "targets/vqav2.json")
    pool, target = (reference.open_pool(model, file, reading).samples for file in files)
    setting = reference.Setting(model, model.blocks("projector"), pool, target)
    found, expected, shared = (way(setting) for way in (reference.engine, reference.published, reference.shared))
    assert found.shape == (4, 6) and torch.allclose(shared, expected, rtol=1e-5, atol=0)
    for method, ours, theirs in zip(reference.METHODS, found, expected, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-3, method


def test_both_solvers_give_one_solution(bench):
    solve = bench("bench_solve")
    fit = solve.gradients(16, 4, 24, 0.5, 0, "cpu")
    found = {name: solve.solve(solve.HyperINF(0.1, solver=name), fit, fit[:2]) for name in ("schulz", "cholesky")}
    assert solve.apart(found["schulz"][1], found["cholesky"][1]) < 1e-4
    assert {name: details["solver"] for name, (_, _, details) in found.items()} == {name: name for name in found}


def test_the_rules_choose_from_a_pool_that_was_drawn(bench, tmp_path):
    rules = bench("bench_select")
    rules.write(tmp_path / "a", 500, 8, 6, 0)
    assert all(rules.choose(tmp_path / "a", rule, 0.1)[1] == 50 for rule in ("round_robin", "strata", "herding"))
    assert rules.argpartition_seconds(tmp_path / "a", 0.1) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "last"),
    [
        ("bench_memory", ["--small", "50", "--large", "100"], "ratio: "),
        ("bench_select", ["--samples", "500", "--columns", "8", "--targets", "6"], "herding: 25 samples in "),
        ("bench_processes", ["--samples", "16", "--repeats", "1"], "median: "),
        (
            "bench_solve",
            ["--size", "32", "--blocks", "2", "--rank", "2", "--device", "cpu"],
            "solver at the end: schulz",
        ),
        (
            "bench_full_size",
            ["--preset", "tiny", "--samples", "10", "--batch_size", "4", "--text_tokens", "16", "--dtype", "float32"]
            + ["--repeats", "1", "--product", "64", "--device", "cpu"],
            "plain forward + backward 0.",
        ),
    ],
)
def test_a_benchmark_runs(bench, script, words, last, monkeypatch, capsys):
    module = bench(script)
    monkeypatch.setattr(sys, "argv", [module.__file__, *words])
    module.main()
    assert capsys.readouterr().out.splitlines()[-1].count(last) == 1
