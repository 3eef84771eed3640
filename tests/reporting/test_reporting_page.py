"""The page of run folders: what it says, that data stay text, and that large pools make small pages."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from run_folders import HOSTILE, begin, make_choice, make_detection, make_pool, make_scored
from scipy import stats

from vlmsel import runs
from vlmsel.data.images import load_image
from vlmsel.reporting.cards import SIDE
from vlmsel.reporting.composition import kind_of
from vlmsel.reporting.distributions import agreement_section, curvature_section
from vlmsel.reporting.folders import find
from vlmsel.reporting.page import page, write_page
from vlmsel.reporting.parts import Matrix, Prose, Section, Table, dots, histogram
from vlmsel.reporting.report import write_report
from vlmsel.reporting.scored import Scored
from vlmsel.reporting.suspects import read_suspects
from vlmsel.scoring.table import read_table

VOID = {"meta", "link", "input", "img", "br", "rect", "path", "polyline", "line"}
COUNT = 60


class Tree(HTMLParser):
    """What a browser sees: tags with attributes, text, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scored pool with two choices, a duel and an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    data = make_pool(folder / "data", COUNT)
    make_scored(folder / "score", data, COUNT, missing=(7, 8))
    make_choice(folder / "select/chosen.json", data, [0, 3, 5, 9, 11, 20, 33, 41])
    make_choice(folder / "select/random.json", data, [1, 2, 4], scorer="Random")
    duel = begin(folder / "duel", "validate")
    won = {"gain": 0.5, "half_width": 0.1, "verdict": "better", "per_seed": [0.5, 0.48, 0.52]}
    tied = {"gain": 0.01, "half_width": 0.2, "verdict": "not told apart", "per_seed": [0.1, -0.1, 0.03]}
    about = {"verdict": "better", "advice": "set a quota by its mixture and draw at random", "count": 8}
    runs.write_json(duel / "validate.json", {"random": won, "same mixture": tied, **about})
    asked = begin(folder / "evaluate", "evaluate", model="m")
    metrics = {"metrics": {"accuracy": 0.625}, "standard_errors": {"accuracy": 0.02}, "majority": {"accuracy": 0.5}}
    metrics |= {"task": "gqa", "headline": "accuracy", "majority_answer": HOSTILE, "questions": 40, "notes": []}
    runs.write_json(asked / "tuned/gqa/metrics.json", metrics)
    return folder


@pytest.fixture(scope="module")
def shown(made):
    """The page of all of it."""
    folders = tuple(str(made / name) for name in ("score", "select", "duel", "evaluate"))
    path = write_report(folders, made / "report.html", load_image, None, None, 6)
    return path.read_text(encoding="utf-8")


def test_the_verdict_stands_on_top_with_its_interval(shown):
    seen = Tree(shown).text
    sentence = "The choice is better than a random one and not told apart from a random one of its own mixture"
    assert sentence in seen and seen.index(sentence) < seen.index("Benchmarks")
    mean, half = 0.5, stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert f"{mean:+.4f} ± {half:.4f}" in seen


def test_sections_are_there_and_all_links_lead_to_them(shown):
    tree = Tree(shown)
    assert tree.open == []
    names = {attrs["id"] for _, attrs in tree.tags if "id" in attrs}
    links = [attrs["href"] for attrs in tree.all("a")]
    assert len(links) > 8 and {link.lstrip("#") for link in links} <= names
    for name in ("Verdict", "Results", "Pool and choice", "Samples", "Scores", "Affinities", "Curvature", "Left out"):
        assert f">{name}</h2>" in shown, name
    labels = [attrs["aria-label"] for _, attrs in tree.tags if attrs.get("role") == "region"]
    titles = re.findall("<h2[^>]*>([^<]*)</h2>", shown)
    assert len({*labels, *titles}) == len(labels) + len(titles)  # landmarks are told apart by their names
    assert '<th scope="col"></th>' not in shown  # nor is there a heading that a screen reader finds empty
    assert "62.5 ± 2.0" in tree.text and "Target sample 0 of gqa and what it took" in tree.text


def test_what_the_data_say_stays_text(shown):
    tree = Tree(shown)
    (script,) = tree.all("script")
    assert script == {} and HOSTILE not in shown
    assert shown.count("<script") == 1 and HOSTILE.replace("'", "'") in "".join(tree.texts)
    assert not [name for _, attrs in tree.tags for name in attrs if name.startswith("on")]
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in tree.all("img"))


def test_only_our_script_may_run_and_nothing_is_loaded(shown):
    script = re.search(r"<script>(.*)</script>", shown, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [one["content"] for one in Tree(shown).all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; img-src data:;") and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=\"(?!data:|#)", shown) and "url(" not in shown and "@import" not in shown


def test_pictures_are_small_and_have_words(shown):
    images = Tree(shown).all("img")
    assert images and all("picture 1 of 1 of sample" in one["alt"] for one in images)
    with Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2]))) as image:
        assert image.size == (SIDE, SIDE * 3 // 4)


def test_who_does_not_see_finds_headings_captions_and_labels(shown):
    tree = Tree(shown)
    levels = [int(name[1]) for name, _ in tree.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(
        after <= before + 1 or (before, after) == (2, 4) for before, after in zip(levels, levels[1:], strict=False)
    )
    assert len(tree.all("table")) == len(tree.all("caption"))
    assert all("aria-label" in one for one in tree.all("svg") if one.get("role") == "img")
    assert all(one.get("scope") in ("col", "row") for one in tree.all("th"))
    assert (
        tree.all("html") == [{"lang": "en"}] and tree.tags[[n for n, _ in tree.tags].index("a")][1]["class"] == "skip"
    )
    assert "prefers-color-scheme: dark" in shown and 'content="width=device-width' in shown


def scored(made):
    found = find([made / "score", made / "select"])
    return Scored.open(found.by("score")[0], found)


def test_agreement_is_that_of_scipy(made):
    one = scored(made)
    columns, _ = read_table(made / "score/scores.parquet")
    known = np.isfinite(columns["loss"])
    ranks = {
        name: sum(stats.rankdata(columns[f"{name}/{target}"][known]) for target in ("gqa", "pope"))
        for name in ("HyperINF", "TracIn")
    }
    parts = [part for part in agreement_section(one).parts if isinstance(part, Matrix)]
    expected = stats.spearmanr(ranks["HyperINF"], ranks["TracIn"]).statistic
    assert parts[0].cells[0][1] == pytest.approx(expected) and parts[0].cells[1][1] == pytest.approx(1)
    uids = np.flatnonzero(known)
    best = [set(uids[np.argsort(own, kind="stable")[:8]]) for own in ranks.values()]
    assert parts[1].cells[0][1] == len(best[0] & best[1]) / 8
    first = stats.spearmanr(columns["HyperINF/gqa"][known], columns["TracIn/gqa"][known]).statistic
    assert parts[2].cells[0][1] == pytest.approx(first)


def test_affinities_are_mean_cosines(made):
    one = scored(made)
    found = one.unit_affinities("HyperINF")
    block = one.affinities.block("HyperINF", slice(0, len(one.affinities)))
    for place, name in enumerate(("gqa", "pope")):
        np.testing.assert_allclose(found[name], block[3 * place : 3 * place + 3].mean(0), atol=1e-6)


def test_curvature_tells_condition_and_residual(made):
    (table,) = [part for part in curvature_section(scored(made)).parts if isinstance(part, Table)]
    assert table.rows == [["HyperINF, layer", "0.1", "200", "3", "0.001", "yes", "2", ""]]


def test_blocks_of_which_nothing_is_told_take_no_rows(made):
    one, known = scored(made), {"samples": 7, "scale": 2.0}  # as of a scorer that solves nothing
    assert curvature_section(replace(one, about={"details": {"TracIn.scaled": {"layer": known}}})) is None


@pytest.mark.parametrize(
    ("solver", "word", "tone"), [("schulz", "no", "bad"), ("cholesky in float64: why", "in float64", "plain")]
)
def test_a_block_that_was_solved_in_float64_instead_is_no_failure(made, solver, word, tone):
    one = scored(made)
    block = {"damping": 0.1, "bound": 1.0, "residuals": [2.0, 1.5], "converged": False, "solver": solver}
    told, table = curvature_section(replace(one, about={"details": {"HyperINF": {"layer": block}}})).parts
    assert table.rows[0][5] == word and told.tone == tone


def test_reasons_are_counted_without_what_differs(shown):
    assert kind_of("image 'a1.jpg' is missing in b/7") == kind_of("image 'b.jpg' is missing in b/12")
    assert "2 left out" in Tree(shown).text


def test_a_pool_that_changed_or_moved_is_told_and_its_texts_are_not_shown(made, tmp_path):
    data = make_pool(tmp_path / "data", COUNT, hostile=None)
    folder = make_scored(tmp_path / "score", data, COUNT)
    (data / "pool.json").write_text("[]")
    page = write_report((str(folder),), tmp_path / "a.html", load_image, None, None, 3).read_text()
    assert "pool.json changed since it was scored" in page and "question 1" not in page
    (data / "pool.json").unlink()
    page = write_report((str(folder),), tmp_path / "a.html", load_image, None, None, 3).read_text()
    assert "pool.json is not there" in page


def test_a_missing_picture_is_told_on_its_card(tmp_path):
    data = make_pool(tmp_path / "data", COUNT, hostile=None)
    folder = make_scored(tmp_path / "score", data, COUNT)
    (data / "p.png").unlink()
    page = write_report((str(folder),), tmp_path / "a.html", load_image, None, None, 3).read_text()
    assert "is missing in" in page and "<img" not in page


def test_large_pools_make_small_pages(tmp_path):
    data = make_pool(tmp_path / "data", 3000, hostile=None)
    folder = make_scored(tmp_path / "score", data, 3000)
    select = make_choice(tmp_path / "select/chosen.json", data, list(range(0, 3000, 3)))
    made = write_report((str(folder), str(select)), tmp_path / "a.html", load_image, None, None, 12)
    assert made.stat().st_size < 1_000_000 and made.read_text().count("<article") < 120


@pytest.mark.parametrize(("name", "problem"), [("none", FileNotFoundError), ("data", ValueError)])
def test_other_folders_are_refused(made, tmp_path, name, problem):
    with pytest.raises(problem, match="no such run folder|neither a run folder"):
        write_report((str(made / name),), tmp_path / "a.html", load_image, None, None, 3)


def test_an_unknown_scorer_and_a_foreign_file_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match="no scorer 'X'; it has HyperINF, TracIn, Random"):
        write_report((str(made / "score"),), tmp_path / "a.html", load_image, None, "X", 3)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="no page of vlmsel report; choose another --out"):
        write_page(tmp_path / "mine.html", "t", "l", [])
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_sections_of_one_title_have_anchors_of_their_own():
    text = page("t", "l", [Section("Same", [Prose("one")]), Section("Same", [Prose("two")])])
    assert 'id="same"' in text and 'id="same-1"' in text


def test_charts_lie_where_their_values_say():
    drawn = dots("c", [("a", 2.0, 1.0, 3.0, "2 ± 1"), ("b", float("nan"), 0.0, 9.0, "")], mark=0.0)
    (place,) = drawn.places
    assert (place.dot, place.left, place.width, drawn.mark) == (pytest.approx(22.22), 11.11, 22.22, 0.0)
    values = np.array([0.0, 0.0, 1.0, np.nan])
    heights = histogram("h", {"pool": values, "choice": values[2:]}, 2).series
    assert heights == {"pool": [66.7, 33.3], "choice": [0, 100]}
    assert histogram("h", {"pool": np.arange(10_001.0)}, 2).note == "10001 values, median 5e+03; 100 beyond"
    assert histogram("h", {"pool": np.array([np.nan])}) is None


# Suspects


def test_suspects_have_given_and_likely_labels_and_a_decision_each(tmp_path):
    made = make_detection(tmp_path / "detect", {})
    text = write_report((str(made),), tmp_path / "a.html", load_image, None, None, 3).read_text(encoding="utf-8")
    tree = Tree(text)
    rows = [one for one in tree.all("tr") if "data-uid" in one]
    assert [(one["data-uid"], one["data-given"], one["data-likely"]) for one in rows] == [
        ("10", "a", HOSTILE),
        ("11", HOSTILE, "a"),
        ("12", "a", HOSTILE),
        ("13", HOSTILE, "a"),
    ]
    labels = [one["data-label"] for one in tree.all("option") if "data-label" in one]
    assert labels == [HOSTILE, "a", HOSTILE, "a"] and len(tree.all("option")) == 16
    assert len(tree.all("select")) == 4 and all(one["aria-label"] for one in tree.all("select"))
    assert text.count("<script") == 1 and HOSTILE not in text and "Verdict" not in tree.text
    assert "75.0" in tree.text and len(tree.all("polyline")) == 2


def test_a_likely_label_of_the_run_goes_before_the_other_class(tmp_path):
    rows, total, labels = read_suspects(make_detection(tmp_path / "d", {"likely_label": "third"}) / "suspects.csv", 3)
    assert [one.likely for one in rows] == ["third"] * 3 and total == 4 and labels == sorted(["a", HOSTILE, "third"])
