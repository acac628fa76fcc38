"""What a branch is called on screen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from session_agent.model import Branch, Mode, printable

# The names that providers give themselves; the keys are what CLOUD_MOUNTS calls them.
_PROVIDERS = {
    "s3": "S3",
    "nextcloud": "Nextcloud",
    "onedrive": "OneDrive",
    "gdrive": "Google Drive",
    "dropbox": "Dropbox",
}


def human(name: str) -> str:
    """A folder's name as a label: "team_notes" becomes "Team notes", "gdrive" "Google Drive".

    A name in which somebody chose capitals is left as it is.
    """
    if name in _PROVIDERS:
        return _PROVIDERS[name]
    # A label is one line of text: control characters would break the files it is written to.
    label = "".join(c if c.isprintable() else " " for c in printable(name))
    if label == label.lower():
        label = label.replace("_", " ").replace("-", " ")
        label = label[:1].upper() + label[1:]
    return " ".join(label.split()) or "Folder"


def labels(branches: Sequence[Branch]) -> dict[str, str]:
    """A label for every branch by its name, such as "Engineering" or "Wiki (read-only)".

    Of several branches whose folders bear one name, each also gets its parent folder: "Notes
    (team)". A branch that is not below the vault has an absolute path for its name.
    """
    short = {branch.name: human(os.path.basename(branch.name)) for branch in branches}
    count = Counter(short.values())
    result = {}
    for branch in branches:
        notes = []
        parent = os.path.dirname(branch.name).strip("/")
        if count[short[branch.name]] > 1 and parent:
            notes.append(parent.replace("/", " / ") if parent.isprintable() else human(parent))
        if branch.mode is Mode.RO:
            notes.append("read-only")
        result[branch.name] = short[branch.name] + (f" ({', '.join(notes)})" if notes else "")
    return result
