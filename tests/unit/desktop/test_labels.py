from __future__ import annotations

import pytest

from session_agent.desktop.labels import human, labels
from tests.support.branches import branches


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("engineering", "Engineering"),
        ("team_notes", "Team notes"),
        ("büro", "Büro"),
        ("iPhone-photos", "iPhone-photos"),
        ("gdrive", "Google Drive"),
        ("nextcloud", "Nextcloud"),
        ("a\nb\tc", "A b c"),
        ("\udcff", "\\xff"),
        ("_", "Folder"),
    ],
)
def test_a_folders_name_as_a_person_would_write_it(name: str, label: str) -> None:
    assert human(name) == label


def test_read_only_and_ambiguous_ones_say_so() -> None:
    found = labels(branches("wiki:ro", "wiki/nested", "a/notes", "b/c/notes:ro", "top", "/top"))
    assert found == {
        "wiki": "Wiki (read-only)",
        "wiki/nested": "Nested",
        "a/notes": "Notes (a)",
        "b/c/notes": "Notes (b / c, read-only)",
        "top": "Top",
        "/top": "Top",
    }
