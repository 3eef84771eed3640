"""The page in a browser, where there is one: no error, search, order, decisions, nothing wider than a phone."""

import csv
import io

import pytest
from browser import CHROMIUM, browser
from run_folders import HOSTILE, make_choice, make_detection, make_pool, make_scored

from vlmsel.data.images import load_image
from vlmsel.reporting.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    data = make_pool(folder / "data", 60)
    make_scored(folder / "score", data, 60)
    make_choice(folder / "select/chosen.json", data, list(range(0, 60, 4)))
    folders = (str(folder / "score"), str(folder / "select"), str(make_detection(folder / "detect", {})))
    return write_report(folders, folder / "report.html", load_image, None, None, 6)


WRITE = (
    "(() => { const one = document.querySelector('%s'); one.value = '%s'; "
    "one.dispatchEvent(new Event('%s', {bubbles: true})) })()"
)


def test_search_and_order_work_without_an_error(page, report):
    page.open(report)
    shown = "[...document.querySelectorAll('.galleries .cards > .card')].filter(c => !c.hidden)"
    total = page.run(f"{shown}.length")
    page.run(WRITE % (".galleries .search", "question 12?", "input"))
    texts = page.run(f"{shown}.map(c => c.textContent)")
    assert 0 < len(texts) < total and all("question 12?" in text for text in texts)
    assert page.run("document.querySelector('.galleries .told').textContent") == f"{len(texts)} of {total} shown"
    page.run(WRITE % (".galleries .search", "", "input"))
    page.run(WRITE % (".galleries .order", "loss down", "change"))
    lists = (
        "[...document.querySelectorAll('.cards')].map(l => [...l.querySelectorAll('.card')].map(c => +c.dataset.loss))"
    )
    assert all(own == sorted(own, reverse=True) for own in page.run(lists))
    assert page.run("document.querySelectorAll('script').length") == 1 and page.said == []


def test_decisions_are_downloaded_as_csv(page, report):
    page.open(report)
    page.run("document.querySelectorAll('.deciding select')[0].selectedIndex = 3")
    page.run("document.querySelectorAll('.deciding select')[1].selectedIndex = 2")
    page.run(WRITE % (".deciding .search", "nothing like it", "input"))  # what is hidden is written too
    page.run("URL.createObjectURL = blob => { window.blob = blob; return '#' }")
    page.run("document.querySelector('.deciding button').click()")
    rows = list(csv.reader(io.StringIO(page.run("window.blob.text()"), newline="")))
    assert rows == [
        ["uid", "given_label", "likely_label", "decision", "new_label"],
        ["10", "a", HOSTILE, "change", HOSTILE],
        ["11", HOSTILE, "a", "drop", ""],
        ["12", "a", HOSTILE, "open", ""],
        ["13", HOSTILE, "a", "open", ""],
    ]
    assert page.said == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_colours_follow(page, report, width, scheme):
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(report)
    assert page.run("document.documentElement.scrollWidth") <= width
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 20, 25)")
