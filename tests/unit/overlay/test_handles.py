"""Open files and folders by number, and which of them write to the file's end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import trio

from session_agent.fsutil.credentials import AGENT
from session_agent.overlay.handles import FolderHandle, Handle, HandleTable
from session_agent.overlay.nodes import Node
from session_agent.overlay.tree import Tree
from tests.unit.overlay.test_tree import open_branch, status

READ, WRITE, BOTH, APPEND = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_APPEND
WAYS = [READ, WRITE, BOTH, READ | APPEND, WRITE | APPEND, BOTH | APPEND]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    branch = open_branch(0, tmp_path)
    yield Tree(branch, 8)
    branch.close()


@pytest.fixture
def node(tree: Tree) -> Node:
    return tree.found(tree.root, b"file", status(5))


def opened(table: HandleTable, node: Node, flags: int) -> tuple[int, Handle]:
    handle = Handle(-1, flags, node, AGENT, node.branch)
    return table.add(handle), handle


@pytest.mark.parametrize(
    ("flags", "other"), list(product([WRITE, BOTH, WRITE | APPEND, BOTH | APPEND], [None, *WAYS]))
)
def test_what_is_appended(node: Node, flags: int, other: int | None) -> None:
    """O_WRONLY|O_APPEND, as loggers and `>>` open; and nobody whose mapped pages might come through it."""
    table = HandleTable()
    _, handle = opened(table, node, flags)
    if other is not None:
        opened(table, node, other)
    harmless = {None, READ, READ | APPEND, WRITE | APPEND}
    assert handle.appends_only == (flags == WRITE | APPEND and other in harmless)


def test_appending_ends_and_begins_with_other_writers(node: Node) -> None:
    table = HandleTable()
    seen = []
    _, handle = opened(table, node, WRITE | APPEND)
    opened(table, node, WRITE | APPEND)
    seen.append(handle.appends_only)
    number, _ = opened(table, node, BOTH)
    seen.append(handle.appends_only)
    table.remove(number)
    seen.append(handle.appends_only)
    assert seen == [True, False, True]


def test_another_files_writers_do_not_count(tree: Tree, node: Node) -> None:
    table = HandleTable()
    _, handle = opened(table, node, WRITE | APPEND)
    opened(table, tree.found(tree.root, b"other", status(6)), BOTH)
    assert handle.appends_only


@pytest.mark.parametrize(
    ("flags", "writable"),
    [
        (READ, False),
        (WRITE, True),
        (BOTH, True),
        (READ | os.O_TRUNC, False),
        (READ | APPEND, False),
    ],
)
def test_writable(node: Node, flags: int, writable: bool) -> None:
    assert Handle(-1, flags, node, AGENT, node.branch).writable == writable


def test_numbers_are_never_used_twice(tree: Tree, node: Node) -> None:
    table = HandleTable()
    seen = set()
    for _ in range(50):
        number, handle = opened(table, node, READ)
        assert table.file(number) is handle
        folder = FolderHandle(-1, tree.root, AGENT)
        folder_number = table.add_folder(folder)
        assert table.folder(folder_number) is folder
        seen |= {number, folder_number}
        assert len(table) == 2
        assert table.remove(number) is handle
        assert table.remove_folder(folder_number) is folder
        for take in (table.file, table.folder, table.remove, table.remove_folder):
            with pytest.raises(KeyError):
                take(number)
    assert len(seen) == 100
    assert len(table) == 0
    assert node.handles is None


def test_a_node_knows_its_handles(node: Node) -> None:
    table = HandleTable()
    first, one = opened(table, node, READ)
    second, two = opened(table, node, READ)
    assert node.handles == [one, two]
    table.remove(first)
    assert node.handles == [two]
    table.remove(second)
    assert node.handles is None


def test_at_the_end_every_descriptor_is_given_back(tree: Tree, node: Node) -> None:
    table = HandleTable()
    table.add(Handle(11, READ, node, AGENT, node.branch))
    table.add_folder(FolderHandle(12, tree.root, AGENT))
    assert sorted(table.drain()) == [11, 12]
    assert len(table) == 0
    assert table.drain() == []


def test_a_moved_folders_listing_goes_on_in_the_new_place(tmp_path: Path, tree: Tree) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "entry").touch()
    handle = FolderHandle(os.open(tmp_path / "old", os.O_RDONLY), tree.root, AGENT)
    handle.restart()  # nothing was listed as yet
    assert (handle.entries, handle.restarted) == (None, False)
    handle.entries = os.scandir(handle.fd)
    new = os.open(tmp_path / "new", os.O_RDONLY)
    os.dup2(new, handle.fd)
    (tmp_path / "new/late").touch()
    handle.restart()
    assert handle.restarted
    assert handle.entries is not None
    assert sorted(entry.name for entry in handle.entries) == ["entry", "late"]
    os.close(new)
    os.close(handle.fd)


def test_the_last_write_wakes_who_waits(node: Node) -> None:
    async def main() -> None:
        handle = Handle(-1, WRITE, node, AGENT, node.branch)
        handle.writing = 2
        event = handle.idle = trio.Event()
        handle.written()
        assert not event.is_set()
        handle.written()
        assert event.is_set()
        handle.writing = 1
        handle.written()  # nobody waits any more

    trio.run(main)


def test_a_listing_that_cannot_begin_anew_fails_by_itself(tree: Tree, tmp_path: Path) -> None:
    """Not the move that has put it on its new place."""
    handle = FolderHandle(os.open(tmp_path, os.O_RDONLY), tree.root, AGENT)
    handle.entries = os.scandir(handle.fd)
    os.close(handle.fd)
    handle.restart()
    with pytest.raises(OSError, match="Bad file descriptor"):
        next(handle.entries)
