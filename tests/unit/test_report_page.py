"""The report's page: whole, without other files, and shown by a browser."""

import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.cli import cli
from engine.report import SECTIONS, Budget, Measurements
from engine.report.page import write_page
from tests.report_points import measured, score

COMMITTED = Path(__file__).parents[2] / "bench" / "results" / "report"
pytest.importorskip("matplotlib", reason="figures need matplotlib (extra figures)")


class Reader(html.parser.HTMLParser):
    """Refuses what is not closed in order, and collects what refers to elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.images, self.headings = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        self._note(tag, dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _note(self, tag, attributes):
        assert tag not in ("script", "link", "iframe", "object")
        self.references += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])
        if tag == "h2":
            self.headings.append(attributes["id"])


def test_the_table_of_findings_says_what_it_is_drawn_from():
    """docs/evidence.md, of sections that are not measured to their end."""
    text = (COMMITTED.parents[2] / "docs" / "evidence.md").read_text()
    for section in SECTIONS:
        (row,) = re.findall(rf"^\| `{section.name}` .*", text, re.MULTILINE)
        found = Measurements.load(COMMITTED / f"{section.name}.json")
        settings = [point.settings for point in section.points(Budget(**found.budget))]
        there = sum(bool(found.where(**each)) for each in settings)
        told = re.findall(r"from (\d+) of (\d+) points", row)
        assert told == ([] if there == len(settings) else [(str(there), str(len(settings)))]), section.name


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """As `make report` makes it, of the committed measurements."""
    out = tmp_path_factory.mktemp("report")
    run = CliRunner().invoke(cli, ["report", "--out", str(out), "--measurements", str(COMMITTED)])
    assert run.exit_code == 0, run.output
    return out / "report.html"


def test_the_page_is_whole_and_refers_to_nothing_else(page):
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.headings == [section.name for section in SECTIONS]
    assert reader.images
    links = [reference for reference in reader.references if not reference.startswith("data:image/png;base64,")]
    assert links == [f"#{section.name}" for section in SECTIONS]
    assert not re.search(r"url\(|@import", text)
    assert len(list(page.parent.glob("*.png"))) == len(reader.images)
    for part in text.split("<h2")[1:]:
        assert re.search("class='verdict'>(confirmed|not confirmed|different here|not measured)[ <]", part)


def test_every_figure_says_where_its_numbers_come_from(page):
    text = page.read_text()
    for path in COMMITTED.glob("*.json"):
        kept = Measurements.load(path)
        assert path.stem == kept.section
        assert kept.section in [section.name for section in SECTIONS]
        points = "1 point" if len(kept.points) == 1 else f"{len(kept.points)} points"
        assert f"<code>{path.name}</code>, {points}, measured by" in text
        for run in kept.runs:
            assert run["command"] in text
            assert "+changes" not in run["commit"]


def test_sections_that_are_not_measured_say_so(tmp_path):
    text = write_page(tmp_path, SECTIONS, {}).read_text()
    assert text.count("class='verdict'>not measured<") == len(SECTIONS)


def test_a_verdict_from_some_of_the_points_says_so(tmp_path):
    (section,) = (section for section in SECTIONS if section.name == "churn")
    points = [point.settings | score(1 - 0.1 * bool(point.settings["S_churn"])) for point in section.points(Budget())]
    some = write_page(tmp_path, [section], {"churn": measured("churn", points[:-1])}).read_text()
    assert some.count("class='verdict'>confirmed so far, from 20 of 21 points<") == 1
    every = write_page(tmp_path, [section], {"churn": measured("churn", points)}).read_text()
    assert every.count("class='verdict'>confirmed<") == 1


def test_a_browser_shows_every_figure(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: Debian's package chromium")
    asks = """<script>document.title = [...document.images].map(i => i.complete && i.naturalWidth > 500 &&
        i.getBoundingClientRect().right <= innerWidth).join()</script>"""
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text().replace("</body>", asks + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--window-size=1100,900", "--dump-dom"]
    shown = subprocess.run([browser, *options, asking.as_uri()], capture_output=True, text=True, timeout=60)
    figures = page.read_text().count("<img ")
    assert f"<title>{','.join(['true'] * figures)}</title>" in shown.stdout


def test_an_unknown_section_or_folder_is_refused(tmp_path):
    run = CliRunner().invoke(cli, ["report", "--measure", "everything"])
    assert run.exit_code == 2
    assert "'everything' is not one of" in run.output
    run = CliRunner().invoke(cli, ["report", "--out", str(tmp_path / "out"), "--measurements", str(tmp_path)])
    assert str(run.exception).startswith(f"measurements is {tmp_path}; allowed: a folder that holds some")
    assert not (tmp_path / "out").exists()
