"""From a node to a descriptor: folders opened again, also when they were changed behind the vault."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from errno import EPERM, ESTALE
from pathlib import Path

import pytest
import trio
import trio.testing

from session_agent.fsutil.credentials import AGENT
from session_agent.model import Branch, MountKind, MountState
from session_agent.overlay import calls, files
from session_agent.overlay.branches import OpenBranch
from session_agent.overlay.handles import Handle
from session_agent.overlay.nodes import FolderNode, Node
from session_agent.overlay.vault import Vault
from tests.support.branches import branch as described

LIMIT = 4  # descriptors of folders


def open_branch(index: int, path: Path, name: str) -> OpenBranch:
    return OpenBranch(index, described(name), os.open(path, os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """Over the root branch and the branches "one" and "one/nested/two"."""
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("root", "one/nested", "two"):
        (tmp_path / name).mkdir(parents=True)
    made = Vault(
        open_branch(0, tmp_path / "root", ""),
        [
            open_branch(2, tmp_path / "two", "one/nested/two"),
            open_branch(1, tmp_path / "one", "one"),
        ],
        LIMIT,
    )
    yield made
    made.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def known(vault: Vault, path: Path, parent: FolderNode, name: str) -> Node:
    """The node of what is at `path`, shown as `name` in `parent`."""
    node = vault.tree.found(parent, name.encode(), os.lstat(path))
    node.lookups += 1
    return node


def walk(vault: Vault, top: Path, below: str) -> list[FolderNode]:
    """The nodes of the folders on the way from the root branch's `top`."""
    nodes = [vault.tree.root]
    for depth, name in enumerate(below.split("/"), start=1):
        path = top.joinpath(*below.split("/")[:depth])
        node = known(vault, path, nodes[-1], name)
        assert isinstance(node, FolderNode)
        nodes.append(node)
    return nodes[1:]


def fd_of(vault: Vault, folder: FolderNode) -> int:
    return trio.run(vault.folder_fd, folder)


def same(fd: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(path))


def test_branches_hang_where_their_names_say(vault: Vault, tmp_path: Path) -> None:
    one, two = vault.branch_roots
    assert (one.branch.info.name, two.branch.info.name) == ("one", "one/nested/two")
    assert two.parent is not None
    assert (two.parent.parent, two.parent.name, two.name) == (one, b"nested", b"two")
    assert vault.branch_below(vault.tree.root, b"one")
    assert vault.branch_below(one, b"nested")
    assert not vault.branch_below(two.parent, b"two")  # that is the branch itself
    assert not vault.branch_below(vault.tree.root, b"other")
    two.parent.lookups += 3
    vault.tree.forget(two.parent.id, 3)  # the kernel may, the vault must not
    assert vault.tree.find(two.parent.key) is two.parent
    assert two.parent.fd >= 0


def test_a_deep_folder_is_opened_from_the_nearest_open_one(vault: Vault, tmp_path: Path) -> None:
    below = "/".join("abcdefgh")
    (tmp_path / "root" / below).mkdir(parents=True)
    nodes = walk(vault, tmp_path / "root", below)
    assert same(fd_of(vault, nodes[-1]), tmp_path / "root" / below)
    assert sum(node.fd >= 0 for node in nodes) == LIMIT
    # One that was closed since; and again, and again.
    for _ in range(3):
        for depth, node in enumerate(nodes, start=1):
            assert same(fd_of(vault, node), tmp_path / "root" / below[: 2 * depth - 1])
            assert sum(node.fd >= 0 for node in nodes) <= LIMIT


def test_a_folder_renamed_above_does_not_matter(vault: Vault, tmp_path: Path) -> None:
    """By the vault: one node changes, and the way below it is right again."""
    (tmp_path / "root/a/b/c").mkdir(parents=True)
    a, _, c = walk(vault, tmp_path / "root", "a/b/c")
    (tmp_path / "root/a").rename(tmp_path / "root/new")
    a.name = b"new"
    assert same(fd_of(vault, c), tmp_path / "root/new/b/c")


def _rename_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def _another(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    (path / "c").mkdir(parents=True)


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _a_file(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.touch()


def _removed(path: Path) -> None:
    (path / "c").rmdir()
    path.rmdir()


@pytest.mark.parametrize("change", [_rename_away, _another, _a_link, _a_file, _removed])
def test_what_was_changed_behind_the_vault_is_looked_up_anew(
    vault: Vault, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """ESTALE, whatever is there now: the kernel then asks for the name, and learns what it is."""
    (tmp_path / "root/a/b/c").mkdir(parents=True)
    _, b, c = walk(vault, tmp_path / "root", "a/b/c")
    change(tmp_path / "root/a/b")
    for node in (c, b):
        with pytest.raises(OSError) as failure:  # noqa: PT011 - the errno is looked at
            fd_of(vault, node)
        assert failure.value.errno == ESTALE
    assert c.fd == -1


def test_an_open_folder_is_reached_whatever_happens_to_its_name(
    vault: Vault, tmp_path: Path
) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    _, b = walk(vault, tmp_path / "root", "a/b")
    fd = fd_of(vault, b)
    (tmp_path / "root/a").rename(tmp_path / "root/new")
    assert fd_of(vault, b) == fd
    assert same(fd, tmp_path / "root/new/b")


def test_a_renamed_folder_is_found_again_once_it_was_looked_up(
    vault: Vault, tmp_path: Path
) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    a, b = walk(vault, tmp_path / "root", "a/b")
    (tmp_path / "root/a").rename(tmp_path / "root/new")
    assert known(vault, tmp_path / "root/new", vault.tree.root, "new") is a
    assert same(fd_of(vault, b), tmp_path / "root/new/b")


def test_a_dead_branch_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    info = Branch("dead", "/gone", described("x").mode, MountState.DEAD, MountKind.LOCAL)
    dead = OpenBranch(1, info, os.open(tmp_path, os.O_PATH))
    vault = Vault(open_branch(0, tmp_path / "root", ""), [dead], LIMIT)
    (top,) = vault.branch_roots
    (tmp_path / "folder").mkdir()
    below = known(vault, tmp_path / "folder", top, "folder")
    assert isinstance(below, FolderNode)
    os.close(dead.fd)
    dead.fd = top.fd = -1
    for node in (top, below):
        with pytest.raises(OSError):  # noqa: PT011 - whatever the branch says
            fd_of(vault, node)
    vault.close()


def test_a_reference_to_a_file(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "root/file"
    path.write_bytes(b"content")
    node = known(vault, path, vault.tree.root, "file")
    fd, ours = trio.run(vault.reference, node, AGENT)
    assert ours
    assert same(fd, path)
    os.close(fd)
    # Open: the handle's own descriptor serves.
    handle = Handle(os.open(path, os.O_RDONLY), os.O_RDONLY, node, AGENT, node.branch)
    number = vault.handles.add(handle)
    assert trio.run(vault.reference, node, AGENT) == (handle.fd, False)
    os.close(vault.handles.remove(number).fd)
    # Another file by that name, and none at all.
    path.rename(tmp_path / "elsewhere")
    path.write_bytes(b"another")
    for _ in range(2):
        with pytest.raises(OSError, match="Stale"):
            trio.run(vault.reference, node, AGENT)
        path.unlink(missing_ok=True)


def test_a_reference_to_a_folder_is_the_nodes_own(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir()
    (a,) = walk(vault, tmp_path / "root", "a")
    fd, ours = trio.run(vault.reference, a, AGENT)
    assert (fd, ours) == (a.fd, False)


def _removed_by_the_vault(vault: Vault, name: bytes) -> None:
    branch = vault.branches[0]
    vault.hold(calls.remove(branch.fd, name, os.unlink), branch, (vault.tree.root, name))


def test_a_removed_file_is_held_while_the_kernel_knows_it(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "root/file"
    path.write_bytes(b"content")
    node = known(vault, path, vault.tree.root, "file")
    _removed_by_the_vault(vault, b"file")
    assert os.fstat(node.fd).st_nlink == 0
    fd, ours = trio.run(vault.reference, node, AGENT)
    assert (fd, ours) == (node.fd, False)
    assert os.fstat(fd).st_size == 7
    before = len(os.listdir("/proc/self/fd"))
    vault.tree.forget(node.id, 1)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_removed_file_that_the_kernel_does_not_know_is_let_go(
    vault: Vault, tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")
    for name in ("never seen", "forgotten"):
        (tmp_path / "root" / name).touch()
    node = known(vault, tmp_path / "root/forgotten", vault.tree.root, "forgotten")
    vault.tree.forget(node.id, 1)
    _removed_by_the_vault(vault, b"never seen")
    _removed_by_the_vault(vault, b"forgotten")
    assert os.listdir("/proc/self/fd") == before


def test_reserved_names(vault: Vault) -> None:
    with pytest.raises(OSError) as failure:  # noqa: PT011 - the errno is looked at
        vault.check_name(b".~session-agent-0")
    assert failure.value.errno == EPERM
    vault.check_name(b".~session-agen")


def test_what_moves_is_waited_for(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    a, b = walk(vault, tmp_path / "root", "a/b")
    seen: list[str] = []

    async def wait(name: str, node: Node) -> None:
        await vault.settled(node)
        seen.append(name)

    async def main() -> None:
        vault.moves[a] = event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "below", b)
            nursery.start_soon(wait, "above", vault.tree.root)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == ["above"]
            del vault.moves[a]
            event.set()
        assert seen == ["above", "below"]

    trio.run(main)
    assert stat.S_ISDIR(b.format)


def test_folders_one_below_the_other(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    start = os.open(tmp_path, os.O_PATH)
    before = os.listdir("/proc/self/fd")
    opened = calls.open_folders(start, [b"a", b"b", b"c"])
    assert [one.status.st_ino for one in opened] == [
        os.stat(tmp_path / name).st_ino for name in ("a", "a/b", "a/b/c")
    ]
    for one in opened:
        os.close(one.fd)
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "a/file").touch()
    for names in ([b"a", b"link", b"c"], [b"a", b"file"], [b"a", b"b", b"absent"]):
        with pytest.raises(OSError, match=r"Not a directory|No such file"):
            calls.open_folders(start, names)
    assert os.listdir("/proc/self/fd") == before
    os.close(start)


def test_the_folders_above_a_branch_are_made(tmp_path: Path) -> None:
    for name in ("root", "one"):
        (tmp_path / name).mkdir()
    branch = open_branch(1, tmp_path / "one", "projects/alpha/deep")
    vault = Vault(open_branch(0, tmp_path / "root", ""), [branch], LIMIT)
    try:
        assert (tmp_path / "root/projects/alpha").is_dir()
        above = vault.branch_roots[0].parent
        assert above is not None
        assert (above.name, vault.branch_roots[0].name) == (b"alpha", b"deep")
    finally:
        vault.close()


@pytest.mark.parametrize("obstacle", ["a file in the way", "a dead branch above"])
def test_a_branch_with_no_place_of_its_own_is_shown_at_the_top(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    for name in ("root", "one", "two"):
        (tmp_path / name).mkdir()
    branches = [open_branch(1, tmp_path / "one", "wiki/one")]
    if obstacle == "a file in the way":
        (tmp_path / "root/wiki").write_bytes(b"")
    else:
        dead = open_branch(2, tmp_path / "two", "wiki")
        dead.state = MountState.DEAD
        branches.append(dead)
    vault = Vault(open_branch(0, tmp_path / "root", ""), branches, LIMIT)
    try:
        assert vault.tree.root.mounted is not None
        assert b"wiki-one" in vault.tree.root.mounted
        assert "wiki/one is shown as wiki-one" in caplog.text
    finally:
        vault.close()


def test_pages_of_a_file_that_may_still_change_unseen_are_not_kept(
    vault: Vault, tmp_path: Path
) -> None:
    """The clock that file systems take their times from may stand still for some milliseconds."""
    path = tmp_path / "root/file"

    def is_kept() -> bool:
        handle, keep = trio.run(files.open_file, vault, node.id, os.O_RDONLY, AGENT)
        trio.run(files.release, vault, handle)
        return keep

    deadline = time.monotonic() + 5
    while True:
        path.write_bytes(b"new")
        node = known(vault, path, vault.tree.root, "file")
        kept = [is_kept(), is_kept()]
        if time.time_ns() - path.stat().st_ctime_ns < files._TICK:
            break
        assert time.monotonic() < deadline, "too slow for this test"
    assert kept == [False, False]
    time.sleep(0.03)
    assert [is_kept(), is_kept()] == [False, True]
