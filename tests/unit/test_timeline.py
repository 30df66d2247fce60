"""Profiles: figures of made-up spans computed by hand, nsys' export in a database made here, torch's profiler."""

import sqlite3
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from bench.timeline import Gaps, Span, Timeline, Total, busy_ns, gaps, merged, summary, tables, totals, within
from bench.traces import MEASURED, from_nsys, from_torch

# 0-10 a, 5-12 b (overlaps a), 12-20 a (touches b), 30-31 copy inside 30-40 a; gaps 20-30 and 40-100; 100-110 b.
SPANS = (
    Span("a", 30, 40),
    Span("a", 0, 10),
    Span("b", 5, 12),
    Span("a", 12, 20),
    Span("copy", 30, 31, "copy"),
    Span("b", 100, 110),
)


def test_busy_time_counts_every_moment_once():
    assert merged(SPANS) == [(0, 20), (30, 40), (100, 110)]
    assert busy_ns(SPANS) == 40
    assert busy_ns(()) == 0


def test_a_short_span_inside_a_long_one_does_not_shorten_it():
    assert merged([Span("long", 0, 100), Span("short", 10, 20), Span("other", 90, 95)]) == [(0, 100)]


def test_gaps_lie_between_the_first_span_and_the_last():
    assert gaps(SPANS) == Gaps(count=2, total=70, longest=60, median=35)
    assert gaps(SPANS[:1]) == gaps(()) == Gaps(0, 0, 0, 0.0)


def test_totals_are_by_name_and_the_longest_first():
    assert totals(SPANS) == [Total("a", 3, 28, 28 / 46), Total("b", 2, 17, 17 / 46), Total("copy", 1, 1, 1 / 46)]
    assert [total.name for total in totals([Span("y", 0, 1), Span("x", 1, 2)])] == ["x", "y"]


def test_within_drops_what_begins_before_or_ends_after():
    assert within(SPANS, Span("window", 5, 40)) == (SPANS[0], SPANS[2], SPANS[3], SPANS[4])


def test_summary_is_of_the_window_and_of_steps():
    row = summary(Timeline("made up", SPANS, window=160), steps=3)
    assert (row["busy"], row["busy from first to last"]) == ("25.00%", "36.36%")
    assert (row["gaps"], row["gaps ms"], row["longest gap us"], row["median gap us"]) == (2, 70e-6, 0.06, 0.035)
    assert (row["launches"], row["of them copies and fills"], row["launches per step"]) == (6, 1, 2)


def test_tables_hold_the_longest_kernels_and_ranges():
    kernels, ranges = tables(Timeline("", SPANS, 160, (Span("unet", 0, 1000),)), steps=2, longest=2).values()
    assert [(row["name"], row["calls"], row["a step"], row["share"]) for row in kernels] == [
        ("a", 3, 1.5, "60.9%"),
        ("b", 2, 1.0, "37.0%"),
    ]
    assert kernels[0]["us a call"] == pytest.approx(28 / 3 / 1e3)
    assert ranges == [{"name": "unet", "calls": 1, "ms": 1e-3, "us a call": 1.0, "share": "100.0%"}]


# The columns of nsys' export that are read, and one beside them of each.
SCHEMA = """
CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT, end INT, streamId INT, demangledName INT, shortName INT);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INT, end INT, bytes INT, copyKind INT);
CREATE TABLE NVTX_EVENTS (start INT, end INT, eventType INT, text TEXT, textId INT, domainId INT);
INSERT INTO StringIds VALUES (1, 'conv'), (2, 'void conv<float>(float*)'), (3, 'row 1');
INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (50, 90, 7, 2, 1), (110, 150, 7, 2, 1), (150, 170, 7, 2, 99);
INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (180, 190, 64, 2), (500, 510, 64, 1);
"""
RANGES = (
    (100, 200, 59, MEASURED, None, 0),
    (105, 125, 59, None, 3, 1),
    (130, 140, 60, "unet", None, 1),
    (10, 20, 59, "before", None, 0),
    (150, None, 34, "a mark", None, 0),
    (0, None, 75, "edm-engine", None, 1),
)


def exported(path, script=SCHEMA, ranges=RANGES):
    database = sqlite3.connect(path)
    database.executescript(script)
    database.executemany("INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?, ?)", ranges)
    database.commit()
    database.close()
    return path


def test_nsys_export_is_read_within_the_measured_range(tmp_path):
    timeline = from_nsys(exported(tmp_path / "p.sqlite"))
    assert timeline.window == 100
    assert timeline.spans == (
        Span("conv", 110, 150),
        Span("?", 150, 170),
        Span("Memcpy DtoH", 180, 190, "copy"),
    )
    assert timeline.ranges == (Span("row 1", 105, 125), Span("unet", 130, 140))
    assert summary(timeline, steps=1)["busy"] == "70.00%"


def test_nsys_export_with_fills_and_whole_graphs(tmp_path):
    more = """
    CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INT, end INT, value INT);
    CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INT, end INT, graphId INT);
    INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES (101, 102, 0);
    INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (191, 199, 4);
    """
    spans = from_nsys(exported(tmp_path / "p.sqlite", SCHEMA + more)).spans
    assert spans[-2:] == (Span("Memset", 101, 102, "copy"), Span("whole CUDA graph", 191, 199))


def test_nsys_export_without_what_is_needed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no NVTX range bench:measured; allowed: exports of bench\.profile_sample"):
        from_nsys(exported(tmp_path / "no-range.sqlite", ranges=RANGES[1:]))
    with pytest.raises(ValueError, match="no kernels in its range"):
        from_nsys(exported(tmp_path / "no-kernels.sqlite", ranges=[(600, 700, 59, MEASURED, None, 0)]))


def test_on_a_cpu_the_outermost_operations_stand_in():
    x = torch.ones(64, 64)
    timeline = from_torch(lambda: torch.nn.functional.linear(x, x).add_(1), torch.device("cpu"))
    assert "CPU's operations" in timeline.source
    assert [span.name for span in timeline.spans] == ["aten::linear", "aten::add_"]  # not the matrix product in linear
    assert {span.kind for span in timeline.spans} == {"operation"}
    assert 0 < busy_ns(timeline.spans) < timeline.window


def test_of_a_gpu_only_its_own_work_counts(monkeypatch):
    """With a profile made up: kernels, copies, a range that torch shows among the kernels, an operation of the CPU."""

    def event(name, start, end, device="CUDA", annotation=False):
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start, end=end),
            device_type=getattr(DeviceType, device),
            is_user_annotation=annotation,
        )

    events = [
        event("conv", 1.5, 4.0),
        event("Memcpy DtoH (Device -> Pinned)", 4.0, 4.25),
        event("unet", 0.0, 9.0, annotation=True),
        event("cudaGraphLaunch", 0.0, 1.0, "CPU"),
    ]
    profile = nullcontext(SimpleNamespace(events=lambda: events))
    monkeypatch.setattr(torch.profiler, "profile", lambda activities, acc_events: profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    timeline = from_torch(lambda: None, torch.device("cuda", 0))
    assert timeline.source == "torch.profiler, CUDA"
    assert timeline.spans == (Span("conv", 1500, 4000), Span("Memcpy DtoH (Device -> Pinned)", 4000, 4250, "copy"))
