"""The report as one HTML file that needs no other: figures inside it as PNGs, and beside it for those who want them."""

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..files import write_bytes
from .measurements import Json, Measurements
from .section import Budget, Drawn, Finding, Section, Table, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
_DPI = 110
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1.5rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption, .from { color: #555; font-size: 0.9rem; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 1rem 0; } caption { text-align: left; color: #555; }
th, td { border: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: left; }
.confirmed { --mark: #009e73; } .not-confirmed { --mark: #d55e00; } .different-here { --mark: #e69f00; }
.finding { border-left: 4px solid var(--mark, #888); padding: 0.1rem 1rem; margin: 1rem 0; background: #f7f7f7; }
td.here { box-shadow: inset 4px 0 var(--mark, #888); padding-left: 0.8rem; min-width: 9rem; } a { color: inherit; }
.verdict { font-weight: bold; } code { font-size: 0.85rem; overflow-wrap: anywhere; }
"""


def write_page(out: Path, sections: Sequence[Section], measured: Mapping[str, Measurements]) -> Path:
    """report.html in the folder ``out``, and the PNGs beside it. measured: by the section's name; one that is missing
    is drawn from no measurements, and says so."""
    parts = []
    for section in sections:
        measurements = measured.get(section.name) or Measurements(section.name, {})
        drawn = section.draw(measurements) if measurements.points else _nothing(section)
        parts.append((section, measurements, drawn, _save(out, drawn, measurements)))
    body = [_head(parts), *(_section(*part) for part in parts)]
    page = f"<!DOCTYPE html>\n<html lang='en'>\n{_TOP}<body>\n{''.join(body)}</body>\n</html>\n"
    write_bytes(out / PAGE, page.encode())
    return out / PAGE


_TOP = f"<head><meta charset='utf-8'/><title>Figures of the papers</title><style>{_STYLE}</style></head>\n"
_Part = tuple[Section, Measurements, Drawn, dict[str, bytes]]


def _nothing(section: Section) -> Drawn:
    why = f"there is no measurement file of {section.name}"
    return Drawn((Finding("all claims of this section", "none", "not measured", why),))


def _save(out: Path, drawn: Drawn, measurements: Measurements) -> dict[str, bytes]:
    """Every figure as a PNG, by name; a line below it says where it comes from, wherever it is shown."""
    origin = f"edm-engine report --measure {measurements.section} --images {measurements.budget.get('images')}"
    pngs = {name: _png(figure, f"{origin}; {measurements.section}.json") for name, _, figure in drawn.figures}
    for name, png in pngs.items():
        write_bytes(out / f"{name}.png", png)
    return pngs


def _png(figure: "Figure", origin: str) -> bytes:
    file = io.BytesIO()
    figure.supxlabel(origin, fontsize=7, color="#555555", x=0.99, ha="right")
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _head(parts: Sequence[_Part]) -> str:
    return (
        "<h1>Figures of the papers, measured here</h1>\n"
        "<p>Every figure is drawn from a file of measurements, and every verdict follows from its numbers by the rule "
        "beside it. Frechet distances are taken on the features of the Fashion-MNIST classifier that ships, against "
        "the 60,000 training images: they are not FIDs. With few images the distance is too large, by about as much "
        "for every point of a figure, so points of one figure compare and those of different numbers of images do not. "
        "All scores of a figure are of the same seeds, 0 on, with the classes in turn. Intervals are 95% jackknives "
        "over ten blocks of seeds; those of differences are paired, seed by seed.</p>\n" + _overview(parts)
    )


def _overview(parts: Sequence[_Part]) -> str:
    """Every finding with a link to its section, and how many there are of each verdict."""
    counts = Counter(finding.verdict for _, _, drawn, _ in parts for finding in drawn.findings)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict])
    rows = []
    for section, measurements, drawn, _ in parts:
        link = f"<a href='#{section.name}'>{escape(section.title)}</a>"
        first = f"<td rowspan='{len(drawn.findings)}'>{link}</td>"
        for finding in drawn.findings:
            kind, verdict = _kind(finding), _verdict(finding, section, measurements)
            rows.append(f"<tr>{first}<td>{_prose(finding.claim)}</td><td class='here {kind}'>{verdict}</td></tr>")
            first = ""
    head = "<tr><th>figure</th><th>claim</th><th>here</th></tr>"
    body = "\n".join(rows)
    return f"<table><caption>All {counts.total()} findings: {told}</caption>\n{head}\n{body}</table>"


def _section(section: Section, measurements: Measurements, drawn: Drawn, pngs: Mapping[str, bytes]) -> str:
    lines = [f"<h2 id='{section.name}'>{escape(section.title)}</h2>", f"<p>After {escape(section.source)}.</p>"]
    lines += [_finding(finding, _verdict(finding, section, measurements)) for finding in drawn.findings]
    for name, shown, _ in drawn.figures:
        data = base64.b64encode(pngs[name]).decode()
        lines.append(f"<figure><img alt='{escape(shown, quote=True)}' src='data:image/png;base64,{data}'/>")
        lines.append(f"<figcaption>{escape(shown)}.</figcaption></figure>")
    lines += [_table(table) for table in drawn.tables]
    lines += [f"<p>{_prose(note)}</p>" for note in section.notes]
    return "\n".join([*lines, _from(measurements), ""])


def _verdict(finding: Finding, section: Section, measurements: Measurements) -> str:
    """With how much of the section it is judged from, where that is not all of it."""
    if finding.verdict == "not measured" or not measurements.budget:
        return finding.verdict
    settings = [point.settings for point in section.points(Budget(**measurements.budget))]
    there = sum(bool(measurements.where(**each)) for each in settings)
    return finding.verdict + (f" so far, from {there} of {len(settings)} points" if there < len(settings) else "")


def _finding(finding: Finding, verdict: str) -> str:
    return (
        f"<div class='finding {_kind(finding)}'><p><span class='verdict'>{verdict}</span>: {_prose(finding.claim)}.</p>"
        f"<p>{_prose(finding.numbers)}.</p><p class='from'>Rule: {_prose(finding.rule)}.</p></div>"
    )


def _kind(finding: Finding) -> str:
    """The class that colours it."""
    return finding.verdict.replace(" ", "-")


def _prose(text: str) -> str:
    """Text in which `code` may stand."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table><caption>{escape(table.caption)}</caption>\n{row(table.head, 'th')}\n{body}</table>"


def _from(measurements: Measurements) -> str:
    """The file, and which command, machine and commit each part of it comes from."""
    if measurements.path is None:
        return "<p class='from'>No measurements.</p>"
    runs = dict.fromkeys(_run(run) for run in measurements.runs)
    items = "".join(f"<li>{line}</li>" for line in runs)
    points = f"{len(measurements.points)} point{'s' * (len(measurements.points) != 1)}"
    return (
        f"<div class='from'><p><code>{measurements.path.name}</code>, {points}, measured by</p><ul>{items}</ul></div>"
    )


def _run(run: Json) -> str:
    facts = ", ".join(f"{escape(name)} {escape(str(value))}" for name, value in run.items() if name != "command")
    return f"<code>{escape(run['command'])}</code><br/>{facts}"
