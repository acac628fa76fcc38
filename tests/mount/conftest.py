"""A served vault for the tests that ask for one: `vault`. A warning in its log fails the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ends import PAIRS, folders_in, names_in_branches, pair_name
from tests.support.vault import Storage, Vault, serve, storage


@pytest.fixture(scope="module")
def place() -> Iterator[Storage]:
    with storage() as made:
        yield made


@pytest.fixture(scope="module")
def served(place: Storage) -> Iterator[Vault]:
    with serve(place) as vault:
        yield vault


@pytest.fixture
def vault(served: Vault) -> Iterator[Vault]:
    with served.watched():
        yield served


@pytest.fixture(params=PAIRS, ids=pair_name)
def ends(vault: Vault, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder in each of two branches."""
    with folders_in(vault, request.param) as folders:
        yield folders


@pytest.fixture
def nothing_left_in_branches(vault: Vault) -> Iterator[None]:
    """The test leaves nothing of a move, nor of its own."""
    before = names_in_branches(vault)
    yield
    assert names_in_branches(vault) == before
