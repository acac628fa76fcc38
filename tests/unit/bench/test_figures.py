from __future__ import annotations

import pytest

from bench.figures import Cell, RowFigures, geometric_mean, row_figures, spread


def figures(**seconds: list[float]) -> RowFigures:
    return row_figures("row", "a row", {who: Cell(s, list(s)) for who, s in seconds.items()})


def test_geometric_mean() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([8.0, None, 2.0]) == pytest.approx(4.0)


def test_geometric_mean_of_nothing() -> None:
    assert geometric_mean([]) is None
    assert geometric_mean([None]) is None


def test_a_row_has_medians() -> None:
    assert figures(vault=[3.0, 1.0, 100.0]).medians == {"vault": 3.0}


def test_ratio_is_above_one_where_the_vault_is_faster() -> None:
    row = figures(native=[1.0], vault=[2.0], mergerfs=[5.0], bindfs=[3.0], unionfs=[4.0])
    assert (row.best_peer, row.ratio, row.of_native) == ("bindfs", 1.5, 0.5)


def test_native_is_no_peer() -> None:
    assert figures(native=[1.0], vault=[2.0]).best_peer is None
    assert figures(native=[1.0], vault=[2.0]).ratio is None


def test_who_failed_once_has_no_figure() -> None:
    cells = {"vault": Cell([2.0], [0.0]), "bindfs": Cell([0.1], [0.0], "wrong result")}
    row = row_figures("row", "a row", cells | {"mergerfs": Cell([4.0], [0.0])})
    assert (row.best_peer, row.ratio) == ("mergerfs", 2.0)
    assert row.failures == {"bindfs": "wrong result"}


def test_a_row_without_the_vault_has_no_ratio() -> None:
    row = row_figures("row", "a row", {"vault": Cell(failure="EIO"), "bindfs": Cell([1.0], [1.0])})
    assert row.ratio is None
    assert row.of_native is None


def test_spread() -> None:
    assert spread([5.0]) == 0.0
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)
