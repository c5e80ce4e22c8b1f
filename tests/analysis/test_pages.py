"""Pages in a browser: what they look like at two widths and in both color schemes, and what their scripts do."""

import base64
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.pages import assert_sound

from centernet.analysis import page_plots, pages, report
from centernet.analysis.certificate import Margins, certify, describe, write_certificate
from centernet.analysis.compare import compare, moving_average
from centernet.analysis.library import read_library
from centernet.analysis.read import Curve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src" / "tools"))
import make_report

COMMITTED = Path(__file__).resolve().parents[2] / "exp" / "reference" / "sample_short"
LONG = "a_very_long_name_without_any_space_" * 6


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a page with the given content."""

    def write_content(content, **values):
        (tmp_path / "content.html").write_text(
            '{% extends "base.html" %}{% from "base.html" import keys, filtered %}{% block content %}'
            + content
            + "{% endblock %}"
        )
        for name in ("base.html", "page.js", "style.css"):
            (tmp_path / name).write_bytes((pages.TEMPLATES / name).read_bytes())
        monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
        pages.write_page(tmp_path / "page.html", "content.html", name="page", **values)
        return tmp_path / "page.html"

    return write_content


def column(browser, index):
    return browser.run(
        f"[...document.querySelectorAll('.sortable tr')].slice(1).map((row) => row.cells[{index}].textContent)"
    )


ROWS = [("b 10", "9.5"), ("b 9", "-"), ("A", "10"), (LONG, "-1e3"), ("c", "12 %"), ("", "nan")]
TABLE = """<section class="wide"><table class="sortable"><tr><th>name</th><th class="number">value</th></tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></section>
{{ keys({long: long}) }}<h1>{{ long }} <small>{{ long }}</small></h1>"""


def test_tables_sort(browser, write):
    page = write(TABLE, rows=ROWS, long=LONG)
    assert_sound(browser, page)
    browser.run("document.querySelectorAll('th button')[1].click()")
    assert column(browser, 1) == ["-1e3", "9.5", "10", "12 %", "-", "nan"]
    browser.run("document.querySelectorAll('th button')[1].click()")
    assert column(browser, 1) == ["12 %", "10", "9.5", "-1e3", "-", "nan"]  # those without a number stay at the end
    assert browser.run("document.querySelectorAll('th')[1].ariaSort") == "descending"
    # By the keyboard, in the order of the numbers in the texts.
    browser.run("document.querySelector('th button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
    assert column(browser, 0) == ["A", LONG, "b 9", "b 10", "c", ""]
    assert browser.run("[...document.querySelectorAll('.sortable th')].map((cell) => cell.ariaSort)") == [
        "ascending",
        None,
    ]


FIGURES = [(["traffic light", "car"], 0.9), (["car"], 0.3), (["<b>"], 0.05), ([], 1.0)]
GALLERY = """<section><div class="images" data-score-name="F1">
{% for classes, score in figures %}<figure {{ filtered(classes, score) }}><figcaption>{{ classes }}</figcaption>
</figure>{% endfor %}<figure data-class="car bus" data-score="0.5"></figure></div></section>"""


def test_galleries_filter(browser, write):
    page = write(GALLERY, figures=FIGURES)
    assert_sound(browser, page)
    shown = "[...document.querySelectorAll('figure')].map((figure) => figure.checkVisibility())"
    change = "((place, value) => {{ const input = document.querySelectorAll('.filters select, .filters input')[place];"
    change += "input.value = value; input.dispatchEvent(new Event('input', {{bubbles: true}})); }})({}, {!r})"
    assert browser.run("[...document.querySelector('select').options].map((option) => option.text)") == [
        *("all", "<b>", "bus", "car", "traffic light")
    ]
    assert browser.run(shown) == [True] * 5
    browser.run(change.format(0, "2"))
    assert browser.run(shown) == [True, True, False, False, True]
    assert browser.run("document.querySelector('output').value") == "3 of 5 shown"
    browser.run(change.format(1, "0.5"))
    assert browser.run(shown) == [True, False, False, False, True]
    browser.run(change.format(0, ""))
    browser.run(change.format(2, "0.9"))
    assert browser.run(shown) == [True, False, False, False, True]
    assert browser.run("document.querySelector('.filters').textContent").startswith("class")
    assert "F1 from" in browser.run("document.querySelector('.filters').textContent")


def test_a_running_report_says_when_the_next_one_is_overdue(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("", ""))
    write_run(tmp_path / "run")
    for due, badge in ((time.time() + 600, "running"), (time.time() - 1, "interrupted?"), (None, None)):
        browser.open(report.write_report(tmp_path / "run", due=due))
        assert browser.run("document.querySelector('.badge')?.textContent ?? null") == badge
        assert browser.run("document.querySelector('main').textContent.includes('epoch 2 of 4, written')") == bool(
            badge
        )


def test_a_running_report_is_loaded_again(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("", ""))
    write_run(tmp_path / "run")
    browser.open(report.write_report(tmp_path / "run", due=time.time() + 600))
    report.write_report(tmp_path / "run")
    badge = "document.querySelector('.badge')?.textContent ?? null"
    browser.run("reloadIfIdle(Date.now() + 30_000)")
    browser.run("dispatchEvent(new Event('keydown'))")
    time.sleep(0.5)
    assert browser.run(badge) == "running"
    browser.run("setTimeout(() => reloadIfIdle(Date.now() + 61_000)) && 0")
    deadline = time.monotonic() + 20
    while browser.run(badge) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert browser.run(badge) is None


PLOT = """(({x, y, width, height}) => [x, y, width, height])(
  document.querySelector(".plot .nsewdrag").getBoundingClientRect())"""


@pytest.mark.slow
def test_curves_zoom_and_follow_the_color_scheme(browser, tmp_path):
    pytest.importorskip("plotly")
    write_run(tmp_path / "run")
    page = report.write_report(tmp_path / "run")
    drawn = "document.documentElement.dataset.curves === 'drawn'"
    assert_sound(browser, page, ready=drawn)  # ends in the dark
    titles = "[...document.querySelectorAll('.plot h3')].map((title) => title.textContent)"
    assert browser.run(titles) == ["loss", "score", "learning rate", "images per second"]
    lines = "[...document.querySelectorAll('.plot .trace path.js-line')].map((line) => getComputedStyle(line).stroke)"
    dark = browser.run(lines)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.wait_for(f"JSON.stringify({lines}) !== {json.dumps(json.dumps(dark, separators=(',', ':')))}")
    assert len(browser.run(lines)) == len(dark) == 6
    # Zoomed by a drag in the first plot, all show the same epochs.
    browser.run("scrollTo(0, document.querySelector('.plot').offsetTop)")
    x, y, width, height = browser.run(PLOT)
    mouse(browser, "mouseMoved", x + width / 4, y + height / 2)
    mouse(browser, "mousePressed", x + width / 4, y + height / 2)
    for step in range(1, 6):
        mouse(browser, "mouseMoved", x + width * (1 / 4 + step / 10), y + height / 2)
    mouse(browser, "mouseReleased", x + width * 3 / 4, y + height / 2)
    ranges = "places.map((place) => place.layout.xaxis.range)"
    browser.wait_for(f"{ranges}.every((range) => range[0] > 0.3 && range[1] < 2)")
    assert len({tuple(round(edge, 6) for edge in pair) for pair in browser.run(ranges)}) == 1
    # The values under the pointer are shown.
    mouse(browser, "mouseMoved", x + width / 2, y + height / 3)
    browser.wait_for("document.querySelector('.plot .hoverlayer').textContent.includes('training')")
    assert browser.problems == browser.requests == []


@pytest.fixture
def curves(tmp_path):
    """Three smooth curves of 100 iterations: a reference, and two runs that are higher by 10 % and 20 %."""
    loss = 2 + 3 * np.exp(-np.arange(100) / 20)
    return [Curve(tmp_path / f"{name}.csv", factor * loss) for name, factor in (("ref", 1), ("a", 1.1), ("b", 1.2))]


def values_of(panel: dict) -> list[np.ndarray]:
    return [np.frombuffer(base64.b64decode(one["y"]["bdata"]), "<f4") for one in panel["series"]]


def test_curves_of_a_comparison(curves, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("", ""))
    reference, *runs = curves
    data = page_plots.comparison_curves(runs, reference, [compare(run, reference, 4) for run in runs])["data"]
    losses, errors = data["panels"]
    assert data["names"] == ["reference ref", "a", "b"] and losses["range"] == errors["range"] == [1, 100]
    assert [(one["kind"], one["run"]) for one in losses["series"]] == [
        (kind, k) for k in range(3) for kind in ("every", "mean")
    ]
    np.testing.assert_allclose(values_of(losses)[2], runs[0].loss, rtol=1e-6)
    np.testing.assert_allclose(values_of(losses)[3], moving_average(runs[0].loss, 4), rtol=1e-6)
    assert [one["run"] for one in errors["series"]] == [1, 2]
    np.testing.assert_allclose(values_of(errors)[0], 10, rtol=1e-5)
    np.testing.assert_allclose(values_of(errors)[1], 20, rtol=1e-5)


def test_curves_of_a_band(curves, monkeypatch):
    monkeypatch.setattr(page_plots, "plotting_library", lambda: ("", ""))
    losses = np.stack([curve.loss for curve in curves])
    data = page_plots.band_curves(losses, 4, curves[:1], limit=2.0)["data"]
    assert data["names"] == ["3 runs of the library", "band", "ref"]
    mean, half = 1.1 * curves[0].loss, 2.0 * 0.1 * curves[0].loss * math.sqrt(1 + 1 / 3)
    absolute, relative = map(values_of, data["panels"])
    for got, expected in zip(absolute[3:], (mean - half, mean + half, curves[0].loss), strict=True):
        np.testing.assert_allclose(got, moving_average(expected, 4), rtol=1e-5)
    np.testing.assert_allclose(relative[5], -100 / 11, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["comparison", "certificate"])
def test_pages_of_comparisons(browser, tmp_path, curves, kind):
    pytest.importorskip("plotly")
    reference, *runs = curves
    page = tmp_path / "page.html"
    if kind == "comparison":
        report.write_study(runs, reference, [compare(run, reference) for run in runs], page)
    else:
        library = read_library(COMMITTED)
        curves = [Curve(curve.path, np.tile(curve.loss, 2)) for curve in curves]
        content = describe(certify(curves, [0.8] * 3, library, Margins()), library, curves, Margins())
        page = write_certificate(content, library, curves, tmp_path)[1]
    assert_sound(browser, page, ready="document.documentElement.dataset.curves === 'drawn'")
    assert browser.run("document.querySelectorAll('.plot').length") == 2
    assert browser.run("document.querySelectorAll('img.curves').length") == 0


MARKUP = "<img src=x onerror=alert(1)><b>"


@pytest.mark.slow
def test_runs_side_by_side(browser, tmp_path):
    """Runs of the same name get different names, which are shown as they are, and can be hidden."""
    pytest.importorskip("plotly")
    folders = [write_run(tmp_path / MARKUP / "run", 2.0, MARKUP), write_run(tmp_path / "b" / "run", 1.0, MARKUP)]
    page = tmp_path / "page.html"
    assert make_report.main([*map(str, folders), "--output", str(page)]) == 0
    assert_sound(browser, page, ready="document.documentElement.dataset.curves === 'drawn'")
    names = [f"{MARKUP}/run", "b/run"]
    assert (
        browser.run("[...document.querySelectorAll('.runs label')].map((label) => label.textContent.trim())") == names
    )
    assert browser.run("document.querySelectorAll('.plot h3')[1].textContent") == MARKUP
    assert browser.run("document.querySelectorAll('main img').length") == 0
    count = "document.querySelectorAll('.plot .trace').length"
    everything = browser.run(count)
    browser.run("document.querySelector('.runs input').click()")
    browser.wait_for(f"{count} * 2 === {everything}")
    browser.run("document.querySelector('.runs input').click()")
    browser.wait_for(f"{count} === {everything}")
    x, y, width, height = browser.run(PLOT)
    mouse(browser, "mouseMoved", x + width / 2, y + height / 2)
    browser.wait_for(f"document.querySelector('.hoverlayer').textContent.includes({json.dumps(MARKUP[:20])})")
    assert browser.problems == browser.requests == []


def mouse(browser, kind, x, y):
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def write_run(folder, scale=1.0, term=None):
    """A run of two epochs of eight iterations and two validations."""
    folder.mkdir(parents=True)
    more = "" if term is None else ",1"
    rows = [f"{(i - 1) // 8 + 1},{i},{scale * 9 / i}{more},0.001,{80 + i}" for i in range(1, 17)]
    columns = "loss" if term is None else f"loss,{term}"
    (folder / "train_log.csv").write_text("\n".join([f"epoch,iteration,{columns},lr,images/s", *rows]) + "\n")
    (folder / "val_log.csv").write_text(f"epoch,loss,mAP,AP/a cat\n1,{scale * 3},0.5,0.4\n2,{scale},0.75,0.7\n")
    (folder / "opt.json").write_text(json.dumps({"options": {"main_score": "mAP", "num_epochs": 4}}))
    return folder


def test_the_policy_stops_foreign_scripts_and_requests(browser, write):
    page = write("<script>window.ran = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.ran = 2'>")
    browser.open(page)
    assert browser.run("window.ran ?? null") is None and browser.requests == []
    assert len([text for text in browser.problems if "Content Security Policy" in text]) >= 2
