"""The affinity file against the gradients it stands for; what is not such a file, or another run's, is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vlmsel import runs
from vlmsel.scoring.affinity import Affinities, Columns, write_affinities

CONFIG = "model: a\nseed: 0\ndevice: cpu\n"


def world(seed=0, n=40, many=5, size=12):
    """Gradients of samples and targets and a metric P, of which two directions outweigh the others."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) * np.geomspace(4, 0.3, size)
    return rng.normal(size=(n, size)), rng.normal(size=(many, size)), root @ root.T


def columns(g, v, p, r=None):
    """C, U and norms as the score pass makes them, with virtual targets W = Σ⁻¹ Uᵀ V."""
    u, sigma, wt = np.linalg.svd(v, full_matrices=False)
    w, u = wt[:r], (u * sigma)[:, :r]
    norms, target_norms = (np.sqrt(np.einsum("ni,ij,nj->n", one, p, one)) for one in (g, v))
    share = (sigma[:r] ** 2).sum() / (sigma**2).sum()
    return Columns(g @ p @ w.T, u, norms, target_norms, float(share), "⟨P g, g⟩", w @ p @ w.T)


def write(path, pool, scorers, uids=None, config=CONFIG, targets=None):
    one = next(iter(scorers.values()))
    targets = targets or [
        {"file": "ab"[t % 2], "uid": t, "weight": None, "loss": 1.0} for t in range(len(one.target_norms))
    ]
    about = {"pool": str(pool), "pool_sha256": runs.file_hash(pool), "config": config}
    write_affinities(path, np.arange(len(one.norms)) if uids is None else uids, targets, scorers, about)
    return {**about}


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "pool.json").write_text("[]")
    return tmp_path / "pool.json"


def test_affinities_are_those_of_the_gradients(tmp_path, pool):
    g, v, p = world()
    g[3] = 0
    write(tmp_path / "a", pool, {"S": columns(g, v, p)}, uids=np.arange(40) * 2 + 1)
    found = Affinities(tmp_path / "a", pool)
    norm = [np.sqrt(np.einsum("ni,ij,nj->n", one, p, one)) for one in (v, g)]
    expected = v @ p @ g.T
    np.testing.assert_allclose(found.block("S", slice(0, 40), unit=False), expected, atol=1e-4)
    with np.errstate(invalid="ignore"):
        unit = np.nan_to_num(expected / norm[0][:, None] / norm[1])
    np.testing.assert_allclose(found.block("S", slice(2, 33)), unit[:, 2:33], atol=1e-5)
    assert (found.block("S", slice(3, 4)) == 0).all() and found.uids[:3].tolist() == [1, 3, 5]
    assert found.targets[4] == {"file": "a", "uid": 4, "weight": None, "loss": 1.0}
    assert found.about["norms"] == {"S": "⟨P g, g⟩"} and found.about["share"]["S"] == pytest.approx(1)


def test_half_precision_keeps_three_digits_and_says_when_it_cannot(tmp_path, pool):
    g, v, p = world()
    full = columns(g, v, p)
    half = Columns(full.samples.astype(np.float16), full.targets, full.norms, full.target_norms)
    write(tmp_path / "a", pool, {"S": full, "H": half})
    found = Affinities(tmp_path / "a")
    rows = slice(0, 40)
    assert found.block("H", rows).dtype == np.float32
    np.testing.assert_allclose(found.block("H", rows), found.block("S", rows), atol=2e-3)
    with np.errstate(over="ignore"):
        large = Columns((1e6 * full.samples).astype(np.float16), full.targets, full.norms, full.target_norms)
    with pytest.raises(ValueError, match="C of L is not finite in float16; keep it in float32"):
        write(tmp_path / "b", pool, {"L": large})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("known", [True, False])
def test_whitened_rows_have_the_inner_products_of_the_gradients(tmp_path, pool, known):
    """Samples in the span of the targets; without the metric of the columns, P = 1."""
    g, v, p = world()
    g, p = g[:, :5] @ v, p if known else np.eye(12)
    one = columns(g, v, p)
    write(tmp_path / "a", pool, {"S": one if known else replace(one, metric=None)})
    found = Affinities(tmp_path / "a")
    features = found.unit("S", slice(0, 40)) @ found.whitening("S")
    norms = np.sqrt(np.diag(g @ p @ g.T))
    np.testing.assert_allclose(features @ features.T, g @ p @ g.T / norms[:, None] / norms, atol=1e-4)


def test_without_norms_of_its_own_a_scorer_has_no_lengths(tmp_path, pool):
    plain = replace(columns(*world()), metric=None, norm="plain gradients")
    write(tmp_path / "a", pool, {"S": plain})
    with pytest.raises(ValueError, match="S has norms of plain gradients only; herding needs its own"):
        Affinities(tmp_path / "a").whitening("S")


def test_other_files_are_refused(tmp_path, pool):
    g, v, p = world(n=6)
    about = write(tmp_path / "a", pool, {"S": columns(g, v, p)})
    with pytest.raises(FileNotFoundError, match="none: no such affinity file"):
        Affinities(tmp_path / "none")
    with pytest.raises(ValueError, match="pool.json: not an affinity file, or damaged"):
        Affinities(pool)
    found = Affinities(tmp_path / "a")
    with pytest.raises(ValueError, match="no affinities by 'Q'; it has S"):
        found.require("Q", about)
    found.require("S", {**about, "config": "seed: 0\nmodel: a\ndevice: cuda\n"})
    with pytest.raises(ValueError, match="of another run than the score table .*model: a here, b there"):
        found.require("S", {**about, "config": CONFIG.replace("model: a", "model: b")})
    named = {**about, "inputs": {"the model": "a", "target t (t.json)": "b"}}
    write_affinities(tmp_path / "told", np.arange(6), found.targets, {"S": columns(g, v, p)}, named)
    told = Affinities(tmp_path / "told")
    told.require("S", named)
    with pytest.raises(ValueError, match=r"of another run than the score table .*\(target t \(t.json\)\)"):
        told.require("S", {**named, "inputs": {"the model": "a", "target t (t.json)": "c"}})
    write(tmp_path / "flat", pool, {"S": columns(0 * g, v, p)})
    with pytest.raises(ValueError, match="flat: no sample has a gradient by S"):
        Affinities(tmp_path / "flat").require("S", about)
    pool.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="belong to another pool"):
        Affinities(tmp_path / "a", pool)
