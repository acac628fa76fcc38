"""Foreign changes that are to be announced, as few as tell the whole story."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from session_agent.overlay.nodes import FolderNode, Key, Node, Place


@dataclass(slots=True)
class Changed:
    """What has happened to one name, in this order: removed, renamed to it or made, modified, closed.

    `source`: the name that it was renamed from; `source_made`: which was itself made just before;
    `source_closed`: and written and closed, too.
    """

    folder: FolderNode
    name: bytes
    removed: bool = False
    was_folder: bool = False
    source: Place | None = None
    source_made: bool = False
    source_closed: bool = False
    made: bool = False
    contents: bool = False
    attributes: bool = False
    closed: bool = False  # by somebody who could write to it

    @property
    def replaced(self) -> bool:
        """Whether something else is to be found at the name after all that."""
        return self.made or self.source is not None

    @property
    def places(self) -> list[Place]:
        """The name, and the one that it was renamed from."""
        here = self.folder, self.name
        return [here] if self.source is None else [here, self.source]

    def otherwise(self) -> list[Changed]:
        """The same story, for a kernel that does not know things as they were: a removal and a creation."""
        removed = self.source is not None or (self.removed and not self.made)
        end = replace(self, source=None, made=self.replaced, removed=removed)
        return [end] if self.source is None else [Changed(*self.source, removed=True), end]


class Unclosed:
    """Files that programs were told to have been written to, and not to have been closed: their keys.

    Not all of them are closed one day, so those that wait longest are forgotten.
    """

    LIMIT = 10_000

    def __init__(self) -> None:
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, key: Key) -> None:
        """It was written to."""
        self._keys[key] = None
        while len(self._keys) > self.LIMIT:
            self._keys.popitem(last=False)

    def discard(self, key: Key) -> None:
        """It was closed."""
        self._keys.pop(key, None)


@dataclass(frozen=True, slots=True)
class Was:
    """What was known at a name. `node`: None if the kernel has forgotten it since."""

    key: Key
    is_folder: bool
    node: Node | None = None


class Forgotten:
    """What the kernel was told of in watched folders, and has forgotten: programs may have seen it.

    Without it, that such a file is gone would not be found by comparing. What was forgotten first is given
    up when it is too much.
    """

    LIMIT = 50_000

    def __init__(self) -> None:
        self._in: dict[FolderNode, dict[bytes, Was]] = {}
        self._count = 0

    def add(self, node: Node) -> None:
        """The kernel forgets this node."""
        assert node.parent is not None
        names = self._in.setdefault(node.parent, {})
        self._count += node.name not in names
        names[node.name] = Was(node.key, isinstance(node, FolderNode))
        while self._count > self.LIMIT:
            self.leave(next(iter(self._in)))

    def of(self, folder: FolderNode) -> dict[bytes, Was]:
        """What was in the folder."""
        return self._in.get(folder, {})

    def discard(self, folder: FolderNode, name: bytes) -> None:
        """Programs have been told how things are at that name."""
        if (names := self._in.get(folder)) and names.pop(name, None):
            self._count -= 1

    def leave(self, folder: FolderNode) -> None:
        """Nobody hears of what is in the folder any more."""
        self._count -= len(self._in.pop(folder, ()))


class Pending:
    """At most one change a name, in the order in which they began."""

    LIMIT = 20_000

    def __init__(self) -> None:
        self._changes: dict[Place, Changed] = {}
        # What was renamed, until it is known to what: by the cookies of both events, and by the old name.
        self._left: dict[int, tuple[Place, bool]] = {}
        self._cookies: dict[Place, int] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def places(self) -> set[Place]:
        """The names of which something is to be told."""
        return {place for change in self._changes.values() for place in change.places}

    def take(self, count: int) -> list[Changed]:
        """The first ones, which are not pending any more."""
        places = [place for place, _ in zip(self._changes, range(count), strict=False)]
        return [self._changes.pop(place) for place in places]

    def _at(self, folder: FolderNode, name: bytes) -> Changed:
        self._nowhere((folder, name))
        return self._changes.setdefault((folder, name), Changed(folder, name))

    def made(self, folder: FolderNode, name: bytes) -> None:
        """A new file."""
        self._at(folder, name).made = True

    def modified(self, folder: FolderNode, name: bytes, *, contents: bool) -> None:
        """Other contents, or other attributes."""
        change = self._at(folder, name)
        if contents:
            change.contents = True
            change.closed = False
        else:
            change.attributes = True

    def closed(self, folder: FolderNode, name: bytes) -> None:
        """Nobody writes to the file any more."""
        self._at(folder, name).closed = True

    def removed(self, folder: FolderNode, name: bytes, is_folder: bool) -> None:
        """The name is gone. If nobody has been told that it was there, nobody is told that it went."""
        self._nowhere((folder, name))
        change = self._changes.pop((folder, name), None)
        if change is not None and change.source is not None:
            if not change.source_made:
                self._vacated(*change.source, is_folder)
        elif change is not None and change.made and not change.removed:
            return
        gone = self._at(folder, name)
        gone.removed, gone.was_folder = True, is_folder

    def _vacated(self, folder: FolderNode, name: bytes, is_folder: bool) -> None:
        """What was at that name is gone, and went before all that has come there since."""
        gone = self._at(folder, name)
        if not gone.removed:
            gone.removed, gone.was_folder = True, is_folder

    def told(self, folder: FolderNode, name: bytes) -> None:
        """A program in the vault has changed that name itself: whoever listens knows how things are there."""
        self._nowhere((folder, name))
        change = self._changes.pop((folder, name), None)
        if change is not None and change.source is not None and not change.source_made:
            self._vacated(*change.source, change.was_folder)

    def left(self, cookie: int, folder: FolderNode, name: bytes, is_folder: bool) -> None:
        """Renamed: to what is told next, or never."""
        self._nowhere((folder, name))
        self._left[cookie] = (folder, name), is_folder
        self._cookies[folder, name] = cookie

    def arrived(self, cookie: int, folder: FolderNode, name: bytes) -> None:
        """This is what it was renamed to."""
        place, _ = self._left.pop(cookie, (None, False))
        if place is not None:
            del self._cookies[place]
        self.renamed(place, folder, name)

    def gone(self, cookie: int) -> None:
        """It was renamed to what programs know of in another way."""
        if cookie in self._left:
            self._nowhere(self._left[cookie][0])

    def all_gone(self) -> None:
        """What was renamed, and nobody knows to what, has gone to where nobody watches."""
        for place in list(self._cookies):
            self._nowhere(place)

    def _nowhere(self, place: Place) -> None:
        """Before anything else is told of that name: what was renamed from it is gone."""
        cookie = self._cookies.pop(place, None)
        if cookie is not None:
            _, is_folder = self._left.pop(cookie)
            self.removed(*place, is_folder)

    def renamed(self, source: Place | None, folder: FolderNode, name: bytes) -> None:
        """Renamed over whatever was there. Without `source`: it came from where nobody watches."""
        self._nowhere((folder, name))
        self._changes.pop((folder, name), None)
        if source is None:
            change = self._at(folder, name)
            change.removed = change.made = True
            return
        earlier = self._changes.pop(source, None)
        change = self._at(folder, name)
        change.source = source
        if earlier is None:
            return
        if earlier.source is not None:
            change.source, change.source_made = earlier.source, earlier.source_made
            change.source_closed = earlier.source_closed
        elif earlier.made:
            change.source_made, change.source_closed = True, earlier.closed
        else:
            change.contents, change.attributes = earlier.contents, earlier.attributes
            change.closed = earlier.closed
        if earlier.removed or (earlier.source is not None and source != change.source):
            # Also what the first of two renames has replaced, if anything was there.
            gone = self._at(*source)
            gone.removed, gone.was_folder = True, earlier.was_folder
