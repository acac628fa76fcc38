from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

from bench import plot, report
from bench.failure import Failure
from bench.figures import Cell
from bench.idle import Idle, Memory, Rest

RUN = report.Run(
    machine={"kernel": "Linux 6"},
    scale=1.0,
    rounds=2,
    busy=False,
    placement="free",
    contenders=["native", "vault", "mergerfs", "bindfs"],
    titles={"walk": "walk <5,000> notes", "large-write": "write"},
    cells={
        "walk": {
            "native": Cell([0.001, 0.001], [0.0, 0.0]),
            "vault": Cell([0.010, 0.010], [0.004, 0.004]),
            "mergerfs": Cell([0.020, 0.020], [0.003, 0.003]),
            "bindfs": Cell(failure="opendir: Input/output error"),
        },
        "large-write": {
            "native": Cell([0.1, 0.1], [0.0, 0.0]),
            "vault": Cell([0.2, 0.2], [0.1, 0.1]),
            "mergerfs": Cell([0.1, 0.1], [0.1, 0.1]),
            "bindfs": Cell([0.4, 0.4], [0.1, 0.1]),
        },
    },
    idle={
        "vault": Idle(
            2, Memory(2048, 4096), 100, Memory(3072, 5120), Rest(10.0, 3, {"read": 2, "futex": 1})
        ),
        "bindfs": Failure("its server has ended"),
    },
)


def test_render_lines_up() -> None:
    assert report.render([["row", "a"], ["walk", "1.5"]]).splitlines() == [
        "| row  |   a |",
        "|------|----:|",
        "| walk | 1.5 |",
    ]


def test_text_has_times_ratios_and_failures() -> None:
    lines = report.as_text(RUN).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ["walk", "1.0", "10.0", "20.0", "failed", "mergerfs", "2.00", "0%"] in cells
    assert ["walk", "4.0", "3.0", "failed"] in cells
    assert "walk: bindfs: opendir: Input/output error" in lines


def test_summary_has_what_the_goals_are_about() -> None:
    assert report.summary(RUN.rows).splitlines() == [
        "Geometric mean of best/vault over 2 rows: 1.00",
        "Lowest: 0.50 (large-write)",
        "large-write: 0.50 of native speed",
    ]


def test_text_has_what_rest_costs() -> None:
    lines = report.as_text(RUN).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert ["vault", "2", "2.0 (4.0)", "3.0 (5.0)", "100", "3", "3", "10 s"] in cells
    assert "The vault's calls: read 2, futex 1" in lines


def test_text_says_if_rest_was_disturbed() -> None:
    quiet = RUN.idle["vault"]
    assert isinstance(quiet, Idle)
    noisy = replace(quiet, rest=replace(quiet.rest, disturbed=True))
    assert "Disturbed" not in report.as_text(RUN)
    assert "Disturbed" in report.as_text(replace(RUN, idle={"vault": noisy}))


def test_json_has_the_samples() -> None:
    written = json.loads(json.dumps(report.as_json(RUN)))
    assert written["geometric_mean"] == 1.0
    assert written["rows"]["walk"]["samples"]["vault"] == [0.010, 0.010]
    assert written["rows"]["walk"]["ratio"] == 2.0
    assert written["idle"]["vault"]["with_nodes"] == {"pss": 3072, "rss": 5120}
    assert written["idle"]["bindfs"] == {"failure": "its server has ended"}


def test_plot_is_an_image_with_a_mark_for_each() -> None:
    image = ElementTree.fromstring(plot.svg(RUN.rows))
    marks = image.findall("{http://www.w3.org/2000/svg}circle")
    legend, walk, large_write = 4, 2, 3
    assert len(marks) == legend + walk + large_write
    texts = [text.text for text in image.findall("{http://www.w3.org/2000/svg}text")]
    assert "walk <5,000> notes" in texts


def test_plot_of_nothing() -> None:
    assert ElementTree.fromstring(plot.svg([])) is not None
