"""The administrator's template: a folder of files as in `.obsidian`.

It is read with the session user's rights, and bounded. What it holds is written into every user's
vault, so an agent that was started by root takes only what root alone can change.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from session_agent.desktop import jsonfile
from session_agent.desktop.merge import Json
from session_agent.desktop.obsidian_settings import kinds_of
from session_agent.errors import AgentError, UserFileError
from session_agent.fsutil import durable
from session_agent.model import printable
from session_agent.rootfile import changeable_by

FILE_LIMIT = 16 * 1024 * 1024  # bytes; the largest of today's plugins has 8 MB
TOTAL_LIMIT = 64 * 1024 * 1024
COUNT_LIMIT = 2000  # files and folders

# Settings, which are merged by key. Everything else is a file that is copied whole: where windows are
# is written anew all the time, and a plugin's manifest belongs to its code.
_SETTINGS = re.compile(r"(?!workspace)[^/]+\.json|plugins/[^/]+/data\.json")


@dataclass(frozen=True, slots=True)
class Template:
    """What the template holds, by path below `.obsidian`: `settings` by key, `files` whole.

    `whole`: everything that is in the folder is here. What `problems` speak of is left out, and what
    was written because of it stays.
    """

    settings: Mapping[str, Json] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing had to be left out."""
        return not self.problems


def read(folder: str, *, root_only: bool) -> Template:
    """The template in `folder`. Never raises for what is in it: that is a problem of the template's."""
    settings: dict[str, Json] = {}
    files: dict[str, bytes] = {}
    problems: list[str] = []
    total = 0
    try:
        for path in _files(folder, problems, root_only=root_only):
            name = posixpath.relpath(path, folder)
            try:
                data = durable.read_regular(path, FILE_LIMIT) or b""
                if _SETTINGS.fullmatch(name):
                    settings[name] = _settings(name, data)
                else:
                    files[name] = data
            except ValueError as error:
                problems.append(f"{printable(path)} is not understood: {error}.")
            except UserFileError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{printable(path)}: {error.strerror}.")
            else:
                total += len(data)
            if total > TOTAL_LIMIT:
                raise _refused(folder, f"holds more than {TOTAL_LIMIT} bytes")
    except AgentError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"The Obsidian template {printable(folder)}: {error.strerror}.")
    return Template(settings, files, tuple(problems))


def _settings(name: str, data: bytes) -> Json:
    value = jsonfile.parse(data).value
    if value is not None and not isinstance(value, kinds_of(name)):
        raise ValueError(f"it holds a {type(value).__name__}, which is not expected there")
    return value


def _files(folder: str, problems: list[str], *, root_only: bool) -> Iterator[str]:
    """The regular files in `folder`, in a fixed order; hidden ones are nobody's settings."""
    waiting = [folder]
    count = 0
    while waiting:
        path = waiting.pop()
        count += 1
        if count > COUNT_LIMIT:
            raise _refused(folder, f"holds more than {COUNT_LIMIT} files")
        if root_only and (step := changeable_by(path)):
            raise _refused(folder, f"is refused: others than root can change {step}")
        if path != folder and os.path.islink(path):
            problems.append(f"{printable(path)} is a symbolic link, and left out of the template.")
        elif os.path.isdir(path):
            names = [name for name in os.listdir(path) if not name.startswith(".")]
            waiting += [posixpath.join(path, name) for name in sorted(names, reverse=True)]
        elif path == folder:
            raise _refused(folder, "is not a folder")
        else:
            yield path


def _refused(folder: str, why: str) -> UserFileError:
    return UserFileError(
        f"The Obsidian template {printable(folder)} {why}.",
        "Correct it, or `obsidian.template` in the settings.",
    )
