"""The tree beside a plain account of what the kernel was told: any sequence of finds, moves, forgets."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from session_agent.overlay.nodes import FolderNode, Node, NodeId
from session_agent.overlay.tree import Tree
from tests.unit.overlay.test_tree import open_branch, status

INODES = st.integers(1, 6) | st.integers((1 << 64) - 3, (1 << 64) - 1)
TYPES = st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])


class TreeMachine(RuleBasedStateMachine):
    """Few inode numbers, so that they are used again all the time."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(tempfile.gettempdir())
        self.branches = [open_branch(number, folder) for number in range(3)]
        self.before = len(os.listdir("/proc/self/fd"))
        self.tree = Tree(self.branches[0], 2)
        self.tops = [
            self.tree.add_branch_root(branch, self.tree.root, b"%d" % branch.index)
            for branch in self.branches[1:]
        ]
        # What the kernel believes: how often each number was told, and the type under which.
        self.lookups: dict[NodeId, int] = {}
        self.types: dict[NodeId, int] = {}

    def _known(self) -> list[Node]:
        return [self.tree[number] for number in self.lookups]

    def _folders(self) -> list[FolderNode]:
        found = [node for node in self._known() if isinstance(node, FolderNode) and node.key > 0]
        return [self.tree.root, *self.tops, *found]

    def _reachable(self) -> set[FolderNode]:
        """The folders that are known, and those that only what is in them still knows."""
        found: set[FolderNode] = set()
        for node in self._known():
            step: Node | None = node
            while step is not None:
                if isinstance(step, FolderNode):
                    found.add(step)
                step = step.parent
        return found

    @staticmethod
    def _is_below(node: Node, top: Node) -> bool:
        step: Node | None = node
        while step is not None and step is not top:
            step = step.parent
        return step is top

    @rule(where=st.integers(0), inode=INODES, file_format=TYPES)
    def find(self, where: int, inode: int, file_format: int) -> None:
        folders = self._folders()
        parent = folders[where % len(folders)]
        node = self.tree.found(parent, b"name", status(inode, file_format))
        node.lookups += 1
        self.lookups[node.id] = self.lookups.get(node.id, 0) + 1
        assert node.format == file_format
        assert node.key == self.tree.key(parent.branch, 7, inode)
        # Under one number there is one type for as long as the kernel knows it.
        assert self.types.setdefault(node.id, file_format) == file_format

    @precondition(lambda self: self.lookups)
    @rule(which=st.integers(0), count=st.integers(1, 3))
    def forget(self, which: int, count: int) -> None:
        number = list(self.lookups)[which % len(self.lookups)]
        count = min(count, self.lookups[number])
        self.tree.forget(number, count)
        self.lookups[number] -= count
        if not self.lookups[number]:
            del self.lookups[number]
            # The kernel drops what it has of a number that it forgets, its type included.
            self.types.pop(number, None)

    @precondition(lambda self: self.lookups)
    @rule(which=st.integers(0), to=st.integers(0, 2), inode=INODES)
    def move(self, which: int, to: int, inode: int) -> None:
        node = self._known()[which % len(self.lookups)]
        top = [self.tree.root, *self.tops][to]
        node.parent = top
        for folder in [one for one in self._reachable() if self._is_below(one, node)]:
            self.tree.detach(folder, folder.branch)
            folder.transfer(top.branch)
        self.tree.rekey(node, top.branch, 7, inode)
        assert self.tree.find(node.key) is node

    @precondition(lambda self: self.lookups)
    @rule(which=st.integers(0))
    def disown(self, which: int) -> None:
        self.tree.disown(self._known()[which % len(self.lookups)])

    @precondition(lambda self: self.lookups)
    @rule(which=st.integers(0))
    def open(self, which: int) -> None:
        node = self._known()[which % len(self.lookups)]
        if isinstance(node, FolderNode):
            self.tree.opened(node, os.open("/", os.O_PATH))

    @invariant()
    def the_kernels_numbers_lead_to_nodes(self) -> None:
        for number, count in self.lookups.items():
            node = self.tree[number]
            assert (node.id, node.lookups) == (number, count)
        assert len(self.tree) == len(self.lookups) + 3

    @invariant()
    def no_two_nodes_are_one_file(self) -> None:
        nodes = self._known()
        assert len({node.key for node in nodes}) == len(nodes)
        for node in nodes:
            if node.key > 0:
                assert self.tree.find(node.key) is node
        assert set(self.tree._elsewhere.values()) <= set(nodes)

    @invariant()
    def every_way_up_ends(self) -> None:
        for node in self._known():
            step, steps = node.parent, 0
            while step is not None:
                step, steps = step.parent, steps + 1
                assert steps < 1000

    @invariant()
    def few_descriptors_are_open(self) -> None:
        assert len(os.listdir("/proc/self/fd")) <= self.before + 2

    def teardown(self) -> None:
        for number, count in self.lookups.items():
            self.tree.forget(number, count)
        assert len(self.tree) == 3
        assert self.tree._elsewhere == {}
        self.tree.close_all()
        assert len(os.listdir("/proc/self/fd")) == self.before
        for branch in self.branches:
            branch.close()


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=40)
