"""Putting the plugin into Obsidian's folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from session_agent.desktop import obsidian
from session_agent.desktop.changes import Change
from session_agent.desktop.memory import Memory
from session_agent.desktop.obsidian_plugin import ID, WHAT, files


class Vault:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.top = path / "vault"
        self.top.mkdir()
        self.folder = self.top / ".obsidian/plugins" / ID
        self.memory = Memory(str(path / "state"))

    def install(self, wanted: dict[str, bytes] | None = None) -> Change:
        changes = obsidian.apply(str(self.top), [], self.memory, plugin=wanted or files())
        (change,) = [change for change in changes if change.what == WHAT]
        return change

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def forget(self) -> None:
        shutil.rmtree(self.path / "state")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def version(number: str, code: bytes = b"// other\n") -> dict[str, bytes]:
    """The plugin as an agent of another version has it."""
    found = files()
    manifest = json.loads(found["manifest.json"])
    manifest |= {"version": number, "sha256": hashlib.sha256(code).hexdigest()}
    return {"main.js": code, "manifest.json": json.dumps(manifest).encode()}


class TestInstalled:
    def test_files(self, vault: Vault) -> None:
        assert vault.install().changed
        assert vault.content() == files()
        manifest = json.loads(vault.content()["manifest.json"])
        assert manifest["id"] == vault.folder.name
        assert {"name", "version", "minAppVersion", "description", "author"} < manifest.keys()

    def test_a_second_run_changes_nothing(self, vault: Vault) -> None:
        vault.install()
        change = vault.install()
        assert (change.changed, change.problem) == (False, "")

    def test_it_is_not_switched_on(self, vault: Vault) -> None:
        listed = vault.top / ".obsidian/community-plugins.json"
        vault.install()
        assert not listed.exists()
        listed.write_text('["dataview"]')
        vault.install()
        assert listed.read_text() == '["dataview"]'

    def test_only_where_it_is_wanted(self, vault: Vault) -> None:
        obsidian.apply(str(vault.top), [], vault.memory)
        assert not (vault.top / ".obsidian/plugins").exists()

    @pytest.mark.parametrize("forget", [False, True])
    def test_an_older_one_is_brought_up_to_date(self, vault: Vault, forget: bool) -> None:
        vault.install(version("0.9.0"))
        (vault.folder / "data.json").write_text('{"mine": 1}')
        if forget:
            vault.forget()
        assert vault.install().changed
        assert vault.content() == {**files(), "data.json": b'{"mine": 1}'}

    def test_a_newer_one_stays(self, vault: Vault) -> None:
        newer = version("99.0.0")
        vault.install(newer)
        assert not vault.install().changed
        assert vault.content() == newer

    def test_a_run_that_was_killed_half_way(self, vault: Vault) -> None:
        vault.install(version("0.9.0"))
        (vault.folder / "main.js").write_bytes(files()["main.js"])
        assert vault.install().changed
        assert vault.content() == files()


class TestOfTheUser:
    @pytest.mark.parametrize("forget", [False, True])
    def test_code_that_was_changed_stays(self, vault: Vault, forget: bool) -> None:
        vault.install(version("0.9.0"))
        with open(vault.folder / "main.js", "a", encoding="utf-8") as file:
            file.write("// mine\n")
        before = vault.content()
        if forget:
            vault.forget()
        change = vault.install()
        assert not change.changed
        assert "changed by the user" in change.detail
        assert vault.content() == before

    @pytest.mark.parametrize("manifest", [b"", b"[", b"[]", b"[" * 100_000, b'{"version": 7}'])
    def test_a_manifest_that_is_not_understood(self, vault: Vault, manifest: bytes) -> None:
        vault.install(version("0.9.0"))
        (vault.folder / "manifest.json").write_bytes(manifest)
        assert not vault.install().changed
        assert vault.content()["main.js"] == b"// other\n"

    def test_what_was_removed_stays_away(self, vault: Vault) -> None:
        vault.install()
        shutil.rmtree(vault.folder)
        assert "removed by the user" in vault.install().detail
        assert not vault.folder.exists()

    def test_a_vault_made_anew_gets_it(self, vault: Vault) -> None:
        vault.install()
        shutil.rmtree(vault.top / ".obsidian")
        assert vault.install().changed
        assert vault.content() == files()

    def test_a_link_that_leads_nowhere(self, vault: Vault) -> None:
        vault.folder.mkdir(parents=True)
        (vault.folder / "main.js").symlink_to("nowhere")
        change = vault.install()
        assert "leads nowhere" in change.problem
        assert os.listdir(vault.folder) == ["main.js"]
