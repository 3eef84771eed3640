"""Scorers that know samples by vectors, against plain loops: one sample at a time, and BM25 by its formula."""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_vlm
from tiny_pool import COLLATE, tiny_items

from vlmsel.scorers import BM25, Embedding, Features, FeatureScorer, Hidden, Samples
from vlmsel.scoring import vectors
from vlmsel.scoring.arrays import score_gradients
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.sample_pass import feature_affinities
from vlmsel.scoring.virtual import TargetSample


@pytest.fixture(scope="module")
def model():
    return tiny_vlm().eval()


class Items(list):
    """Encoded samples by position."""


def plan_of(items, groups):
    return BatchPlan(Items(items), COLLATE, groups)


def hidden_by_hand(model, item):
    """The mean of one sample's last hidden states, token k of m weighted by k."""
    with torch.no_grad():
        _, embeddings = model.embed(COLLATE([item]))
        states = model.backbone(inputs_embeds=embeddings, output_hidden_states=True).hidden_states[-1][0]
    total, weights = torch.zeros(states.shape[1], dtype=torch.float64), 0
    for k, state in enumerate(states.double(), 1):
        total += k * state
        weights += k
    return total / weights


def embedding_by_hand(model, item):
    table = model.backbone.get_input_embeddings().weight.detach().double()
    words = torch.stack([table[token] for token in item.input_ids if token >= 0]).mean(0)
    seen = torch.zeros(model.vision.width, dtype=torch.float64)
    if item.pixels:
        with torch.no_grad():
            seen = torch.stack([model.tower(one[None])[0].double().mean(0) for one in item.pixels]).mean(0)
    return torch.cat([words / words.norm(), seen / seen.norm() if item.pixels else seen])


@pytest.mark.parametrize("kind, by_hand", [("hidden", hidden_by_hand), ("embedding", embedding_by_hand)])
def test_vectors_are_those_of_each_sample_alone(model, kind, by_hand, tmp_path):
    items = tiny_items()
    places = list(range(len(items)))
    assert any(item.pixels for item in items) and not all(item.pixels for item in items)
    expected = torch.stack([by_hand(model, item) for item in items])
    for groups in ([places], [places[::2], places[1::2]], [[i] for i in places]):
        plan = plan_of(items, groups)
        found = vectors.in_order(vectors.sample_vectors(kind, model, plan, None, Budget()), plan, places)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_vectors_of_a_run_are_kept_by_chunk(model, tmp_path):
    items = tiny_items([1, 0] * 65)
    plan = plan_of(items, [[i] for i in range(len(items))])
    expected = vectors.sample_vectors("hidden", model, plan, tmp_path, Budget())
    files = sorted((tmp_path / "vectors").iterdir())
    assert len(files) == 3 and load_file(files[0])["vectors"].shape[0] == 64
    files[-1].unlink()

    class OnlyLast(Items):
        def __getitem__(self, position):
            assert position >= 128
            return super().__getitem__(position)

    again = vectors.sample_vectors("hidden", model, replace(plan, data=OnlyLast(items)), tmp_path, Budget())
    assert torch.equal(again, expected)
    files[0].write_bytes(files[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match="hidden-00000000.safetensors: damaged .* delete it and run the same command"):
        vectors.sample_vectors("hidden", model, plan, tmp_path, Budget())


def test_a_kind_that_is_none_is_refused(model):
    with pytest.raises(ValueError, match="no 'smell' vectors"):
        vectors.sample_vectors("smell", model, plan_of(tiny_items(), [[0]]), None, Budget())


def samples(texts, seen=None):
    count = len(texts)
    nan = torch.full((count,), math.nan)
    more = () if seen is None else (lambda kind: seen,)
    return Samples(torch.arange(count), nan, torch.ones(count, dtype=torch.int64), [""] * count, lambda: texts, *more)


def named(count):
    return [TargetSample("one", uid, None, 1.0) for uid in range(count)]


POOL = ["the red square", "a blue circle is round and blue", "blue", "what is it", "the the the"]
ASKED = ["a blue blue square", "what colour is the circle", "green"]


def bm25_by_hand(query, text, texts, k1, b):
    """Lucene's form of BM25, words of two letters and more."""
    words = [re.findall(r"\w\w+", one) for one in texts]
    mean, own, score = sum(map(len, words)) / len(words), Counter(re.findall(r"\w\w+", text)), 0.0
    for word in re.findall(r"\w\w+", query):
        holding = sum(word in one for one in words)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        tf = own[word]
        score += idf * tf / (tf + k1 * (1 - b + b * sum(own.values()) / mean)) if tf else 0
    return score


@pytest.mark.parametrize("columns", [3, 128])
def test_bm25_is_its_formula(columns):
    scorer = BM25(k1=1.2, b=0.6)
    found = feature_affinities(scorer, samples(POOL), samples(ASKED), named(3), columns)
    affinities = found.virtual.mixing @ found.columns.double().T
    expected = [[bm25_by_hand(query, text, POOL, 1.2, 0.6) for text in POOL] for query in ASKED]
    torch.testing.assert_close(affinities, torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    scores = scorer.score(samples(POOL), {"one": samples(ASKED)})
    torch.testing.assert_close(scores[0].double(), -torch.tensor(expected).double().mean(0), rtol=1e-5, atol=1e-6)


def test_words_that_no_sample_has_cannot_choose():
    with pytest.raises(ValueError, match="BM25: no target sample has a vector other than 0"):
        feature_affinities(BM25(), samples(POOL), samples(["green grass"]), named(1), 8)


@pytest.mark.parametrize("scorer", [Hidden(), Hidden(centred=True, name="centred"), Embedding()], ids=lambda s: s.name)
@pytest.mark.parametrize("columns", [8, 4])
def test_affinities_are_cosines(scorer, columns):
    torch.manual_seed(0)
    own = torch.randn(30, 9) + 1
    wanted = torch.randn(6, 9) + 1
    found = feature_affinities(scorer, samples([""] * 30, own), samples([""] * 6, wanted), named(6), columns)
    middle = own.double().mean(0) if scorer.name == "centred" else torch.zeros(9)
    expected = torch.nn.functional.cosine_similarity(
        wanted[:, None].double() - middle, own[None].double() - middle, dim=-1
    )
    share = found.virtual.share
    lost = 6 * (1 - share)  # Σ_t ‖φ_t - Σ_k M_tk w_k‖², the directions that have no column
    assert (lost == 0) == (columns >= 6) and lost < 3
    affinities = found.virtual.mixing @ found.columns.double().T
    torch.testing.assert_close(affinities, expected, rtol=1e-5, atol=1e-6 + math.sqrt(lost))
    mixing = found.virtual.mixing  # the norms in the columns' metric are the targets' own, 1
    squares = (mixing @ found.inner @ mixing.T).diagonal()
    torch.testing.assert_close(squares, torch.ones(6).double(), rtol=1e-5, atol=1e-5 + lost)
    torch.testing.assert_close(found.norms, torch.ones(30), rtol=1e-5, atol=0)


@dataclass(frozen=True)
class Broken(FeatureScorer):
    """A vector that is not finite."""

    name: str = "Broken"

    def features(self, samples, targets):
        return Features(torch.full((len(samples.uids), 2), math.nan), torch.ones(len(targets.uids), 2))


def test_a_vector_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="Broken: a vector of the pool is not finite"):
        feature_affinities(Broken(), samples(POOL), samples(ASKED), named(3), 8)


def test_samples_without_a_model_have_no_vectors():
    with pytest.raises(ValueError, match="hidden vectors of samples come from a model"):
        Hidden().score(samples(POOL), {"one": samples(ASKED)})


def test_gradients_of_targets_alone_are_refused():
    """As a store has them, and `score_gradients`."""
    with pytest.raises(ValueError, match="BM25 compares samples with those of the targets, .* take `vlmsel score`"):
        BM25().score(samples(POOL), {"one": samples([])})
    gradients = {"block": torch.ones(3, 2, 2)}
    with pytest.raises(ValueError, match="Hidden compares samples with those of the targets"):
        score_gradients(gradients, {"block": torch.ones(1, 2, 2)}, Hidden())
