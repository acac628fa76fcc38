"""Nodes and their numbers, without a kernel that asks for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.nodes import FolderNode, Node
from session_agent.overlay.tree import Tree
from tests.support.branches import branch as described
from tests.support.storage import bind

LIMIT = 8  # descriptors of folders
BIG = (1 << 64) - 1


def status(inode: int, mode: int = stat.S_IFREG, device: int = 7) -> os.stat_result:
    return os.stat_result((mode | 0o700, inode, device, 1, 0, 0, 0, 0, 0, 0))


def open_branch(index: int, path: Path) -> OpenBranch:
    return OpenBranch(index, described(path.name), os.open(path, os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def branches(tmp_path: Path) -> Iterator[list[OpenBranch]]:
    """The root's and two others, folders of one file system."""
    paths = [tmp_path / name for name in ("root", "one", "two")]
    for path in paths:
        path.mkdir()
    opened = [open_branch(index, path) for index, path in enumerate(paths)]
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def tree(branches: list[OpenBranch]) -> Tree:
    return Tree(branches[0], LIMIT)


@pytest.fixture
def tops(tree: Tree, branches: list[OpenBranch]) -> list[FolderNode]:
    """The roots of the two branches."""
    return [
        tree.add_branch_root(branch, tree.root, branch.info.name.encode())
        for branch in branches[1:]
    ]


def known(tree: Tree, parent: FolderNode, name: bytes, found: os.stat_result) -> Node:
    """What the kernel has been told of."""
    node = tree.found(parent, name, found)
    node.lookups += 1
    return node


# Numbers


@pytest.mark.parametrize("inode", [1, 2**48 - 1, 2**48, 2**63, BIG])
def test_a_number_stays_after_it_was_forgotten(tree: Tree, inode: int) -> None:
    node = known(tree, tree.root, b"file", status(inode))
    tree.forget(node.id, 1)
    assert len(tree) == 1
    again = known(tree, tree.root, b"new name", status(inode))
    assert again is not node
    assert again.id == node.id


def test_numbers_are_unique(tree: Tree, tops: list[FolderNode]) -> None:
    """Over branches, devices and any inode numbers; and no folder's that a branch begins at."""
    inodes = [*range(1, 50), *(2**48 + n for n in range(-20, 20)), *(BIG - n for n in range(50))]
    nodes = [
        known(tree, parent, b"%d %d" % (device, inode), status(inode, device=device))
        for parent in (tree.root, *tops)
        for device in (0, 7, 2**40)
        for inode in inodes
    ]
    numbers = {node.id for node in nodes}
    assert len(numbers) == len(nodes)
    assert numbers.isdisjoint({1, *(top.id for top in tops)})
    assert all(1 < number < 2**63 for number in numbers)
    assert len(tree) == len(nodes) + 3


def test_small_numbers_are_exact_for_programs_that_keep_them_as_floating_point(tree: Tree) -> None:
    for device in range(30):
        node = tree.found(tree.root, b"%d" % device, status(2**48 - 1, device=device))
        assert int(float(node.id)) == node.id
        tree.drop_unused(node)


def test_two_numbers_that_clash_are_two_files(tree: Tree) -> None:
    """Hashed numbers can, though nobody will see it: made here of a node that lies elsewhere."""
    first = known(tree, tree.root, b"first", status(10))
    tree.rekey(first, tree.root.branch, 7, 20)
    second = known(tree, tree.root, b"second", status(10))
    assert second.id != first.id
    assert tree.find(first.key) is first
    assert tree.find(second.key) is second
    assert tree[first.id] is first
    assert tree[second.id] is second


def test_a_link_is_the_same_node(tree: Tree) -> None:
    folder = known(tree, tree.root, b"folder", status(5, stat.S_IFDIR))
    assert isinstance(folder, FolderNode)
    first = known(tree, tree.root, b"one", status(9))
    second = known(tree, folder, b"two", status(9))
    assert second is first
    assert (first.parent, first.name, first.lookups) == (folder, b"two", 2)


# Inode numbers used again


def test_another_type_under_the_number_is_another_node(tree: Tree) -> None:
    file = known(tree, tree.root, b"name", status(5))
    file.lookups = 3
    folder = known(tree, tree.root, b"name", status(5, stat.S_IFDIR))
    assert isinstance(folder, FolderNode)
    assert folder.id != file.id
    link = known(tree, tree.root, b"name", status(5, stat.S_IFLNK))
    assert link.id not in (file.id, folder.id)
    assert tree.find(link.key) is link
    # What is known to be gone is found by its own number until the kernel has forgotten it.
    assert tree[file.id] is file
    tree.forget(file.id, 3)
    tree.forget(folder.id, 1)
    assert tree.find(link.key) is link
    tree.forget(link.id, 1)
    assert len(tree) == 1
    assert known(tree, tree.root, b"name", status(5)).id == file.id


def test_what_was_just_made_is_another_node_than_what_is_gone(tree: Tree) -> None:
    gone = known(tree, tree.root, b"gone", status(5))
    new = tree.made(tree.root, b"new", status(5))
    assert new.id != gone.id
    assert gone.key == -gone.id


def test_another_type_closes_what_was_held(tree: Tree, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    folder = known(tree, tree.root, b"name", status(5, stat.S_IFDIR))
    assert isinstance(folder, FolderNode)
    tree.opened(folder, os.open(tmp_path, os.O_PATH))
    known(tree, tree.root, b"name", status(5))
    assert os.listdir("/proc/self/fd") == before


def test_a_moved_nodes_inode_number_used_again_by_another_type(
    tree: Tree, tops: list[FolderNode], branches: list[OpenBranch]
) -> None:
    """The kernel still knows the node by its old number, whatever has become of the file."""
    file = known(tree, tops[0], b"name", status(5))
    tree.rekey(file, branches[2], 7, 50)
    folder = known(tree, tops[1], b"name", status(50, stat.S_IFDIR))
    assert isinstance(folder, FolderNode)
    assert folder.id != file.id
    assert tree.find(folder.key) is folder
    tree.forget(file.id, 1)
    tree.forget(folder.id, 1)
    assert len(tree) == 3
    assert tree._elsewhere == {}


def test_the_same_type_under_the_number_is_the_same_node(tree: Tree) -> None:
    first = known(tree, tree.root, b"old", status(5))
    assert known(tree, tree.root, b"new", status(5, stat.S_IFREG | 0o4111)) is first


# Moves


def test_a_moved_file_keeps_its_number(
    tree: Tree, tops: list[FolderNode], branches: list[OpenBranch]
) -> None:
    node = known(tree, tops[0], b"file", status(5))
    number = node.id
    tree.rekey(node, branches[2], 7, 50)
    assert known(tree, tops[1], b"file", status(50)) is node
    assert node.id == number
    # The old inode number is another file's from now on.
    other = known(tree, tops[0], b"file", status(5))
    assert other is not node
    assert other.id != number
    # And back again, to an inode number of its own.
    tree.rekey(node, branches[1], 7, 6)
    assert known(tree, tops[0], b"back", status(6)) is node
    for one in (node, node, node, other):
        tree.forget(one.id, 1)
    assert len(tree) == 3
    assert tree._elsewhere == {}


def test_a_file_moved_to_the_inode_number_of_one_that_is_gone(
    tree: Tree, tops: list[FolderNode], branches: list[OpenBranch]
) -> None:
    gone = known(tree, tops[1], b"gone", status(50))
    node = known(tree, tops[0], b"file", status(5))
    tree.rekey(node, branches[2], 7, 50)
    assert tree.find(node.key) is node
    assert gone.key != node.key
    assert known(tree, tops[1], b"file", status(50)) is node
    tree.forget(gone.id, 1)
    assert tree.find(node.key) is node
    tree.forget(node.id, 2)
    assert len(tree) == 3
    assert tree._elsewhere == {}


def test_a_file_moved_home_to_a_number_that_was_used_again(
    tree: Tree, tops: list[FolderNode], branches: list[OpenBranch]
) -> None:
    node = known(tree, tops[0], b"file", status(5))
    tree.rekey(node, branches[2], 7, 50)
    other = known(tree, tops[0], b"other", status(5))
    tree.rekey(node, branches[1], 7, 5)  # `other` has been deleted behind the vault
    assert tree.find(node.key) is node
    assert other.key != node.key
    tree.forget(other.id, 1)
    assert tree.find(node.key) is node
    tree.rekey(node, branches[2], 7, 51)
    assert tree.find(tree.key(branches[1], 7, 5)) is None


def test_a_node_that_is_no_files_any_more(tree: Tree) -> None:
    node = known(tree, tree.root, b"one", status(5))
    tree.disown(node)
    other = known(tree, tree.root, b"one", status(5))
    assert other is not node
    assert other.id != node.id
    assert tree[node.id] is node
    tree.forget(node.id, 1)
    tree.forget(other.id, 1)
    assert len(tree) == 1
    assert tree._elsewhere == {}


# Forgetting


def test_a_node_lives_as_long_as_the_kernel_counts(tree: Tree) -> None:
    node = known(tree, tree.root, b"file", status(5))
    node.lookups += 4
    tree.forget(node.id, 2)
    tree.forget(node.id, 2)
    assert tree[node.id] is node
    tree.forget(node.id, 1)
    with pytest.raises(KeyError):
        tree[node.id]
    tree.forget(node.id, 1)  # a number that is not known is no error
    tree.forget(1, 100)
    assert tree[1] is tree.root


def test_a_branch_is_never_forgotten(tree: Tree, tops: list[FolderNode]) -> None:
    tree.forget(tops[0].id, 1000)
    assert tree[tops[0].id] is tops[0]
    assert tops[0].fd >= 0
    assert tree.root.mounted is not None
    assert tree.root.mounted[b"one"] is tops[0]


def test_what_the_kernel_was_not_told_of_is_dropped(tree: Tree) -> None:
    tree.drop_unused(tree.found(tree.root, b"file", status(5)))
    assert len(tree) == 1
    node = known(tree, tree.root, b"file", status(5))
    tree.drop_unused(tree.found(tree.root, b"file", status(5)))
    assert tree[node.id] is node


def test_a_file_without_a_name_is_closed_when_forgotten(tree: Tree, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    node = known(tree, tree.root, b"file", status(5))
    node.fd = os.open(tmp_path, os.O_PATH)
    tree.forget(node.id, 1)
    again = known(tree, tree.root, b"file", status(5))
    again.fd = os.open(tmp_path, os.O_PATH)
    # Found by a name after all (linked anew through its descriptor).
    assert known(tree, tree.root, b"back", status(5)) is again
    assert again.fd == -1
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_is_no_file(tree: Tree) -> None:
    node = known(tree, tree.root, b"file", status(5))
    with pytest.raises(NotADirectoryError):
        tree.folder(node.id)
    with pytest.raises(KeyError):
        tree.folder(12345)


# Descriptors of folders


def _folders(tree: Tree, count: int, path: Path) -> list[FolderNode]:
    made = []
    for number in range(count):
        node = known(tree, tree.root, b"%d" % number, status(100 + number, stat.S_IFDIR))
        assert isinstance(node, FolderNode)
        tree.opened(node, os.open(path, os.O_PATH))
        made.append(node)
    return made


def test_the_oldest_descriptors_are_closed(tree: Tree, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    folders = _folders(tree, 3 * LIMIT, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + LIMIT
    assert [node.fd >= 0 for node in folders] == [False] * 2 * LIMIT + [True] * LIMIT
    for node in folders[-LIMIT:]:
        os.fstat(node.fd)
    tree.close_all()
    assert len(os.listdir("/proc/self/fd")) == before
    assert tree.root.fd >= 0


def test_a_second_descriptor_of_a_folder_is_closed(tree: Tree, tmp_path: Path) -> None:
    (node,) = _folders(tree, 1, tmp_path)
    fd = node.fd
    before = os.listdir("/proc/self/fd")
    tree.opened(node, os.open(tmp_path, os.O_PATH))
    assert node.fd == fd
    assert os.listdir("/proc/self/fd") == before


def test_a_forgotten_folder_that_a_child_leads_through_is_closed_at_the_end(
    tree: Tree, tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")
    (node,) = _folders(tree, 1, tmp_path)
    child = known(tree, node, b"child", status(5))
    tree.forget(node.id, 1)
    assert child.parent is node
    tree.opened(node, os.open(tmp_path, os.O_PATH))
    tree.close_all()
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_stay_few_over_very_many_nodes(tree: Tree, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    directory, file = status(0, stat.S_IFDIR), status(0)
    for number in range(1, 100_001):
        found = (directory if number % 10 == 0 else file)[:1]
        node = tree.found(tree.root, b"%d" % number, os.stat_result((*found, number, *file[2:10])))
        node.lookups += 1
        if isinstance(node, FolderNode):
            tree.opened(node, os.open(tmp_path, os.O_PATH))
        if number % 3 == 0:
            tree.forget(node.id, 1)
        if number % 20_000 == 0:
            assert len(os.listdir("/proc/self/fd")) <= before + LIMIT
    for node in [*tree.nodes()]:
        tree.forget(node.id, node.lookups)
    assert len(tree) == 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert tree._elsewhere == {}


# Folders that seem to lie in themselves


def test_a_folder_found_in_itself(tree: Tree) -> None:
    """By a junction of a Windows share, say. The way up from it would never end."""
    folder = known(tree, tree.root, b"folder", status(5, stat.S_IFDIR))
    assert isinstance(folder, FolderNode)
    below = known(tree, folder, b"below", status(6, stat.S_IFDIR))
    assert isinstance(below, FolderNode)
    for parent in (folder, below):
        assert tree.found(parent, b"loop", status(5, stat.S_IFDIR)) is folder
        assert (folder.parent, folder.name) == (tree.root, b"folder")
    assert known(tree, tree.root, b"renamed", status(5, stat.S_IFDIR)) is folder


@pytest.mark.needs_root
def test_a_folder_bound_into_itself(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    root = open_branch(0, tmp_path)
    tree = Tree(root, LIMIT)
    with bind(tmp_path / "a", tmp_path / "a/b/c"):
        parent = tree.root
        for name in ("a", "a/b"):
            node = known(tree, parent, name[-1].encode(), os.stat(tmp_path / name))
            assert isinstance(node, FolderNode)
            parent = node
        loop = tree.found(parent, b"c", os.stat(tmp_path / "a/b/c"))
        assert (loop.parent, loop.name) == (tree.root, b"a")
    root.close()
