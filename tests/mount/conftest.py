"""A served vault for the tests that ask for one: `vault`. A warning in its log fails the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
