"""The story that `./dev demo` tells. Ends with 0 if everything it claims came true."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.storage import USER, Storage, left_behind

AGENT = Path(sys.prefix) / "bin/session-agent"


class Story:
    """Prints what happens, and remembers whether it was what should have happened."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.failures: list[str] = []
        self.environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(storage.home),
            "SESSION_AGENT_CONFIG": str(storage.config),
            "CLOUD_MOUNTS": f"{storage.ground}/gdrive|gdrive,{storage.ground}/not-there|s3",
        }

    def agent(self, *arguments: str, expected: Sequence[int] = (0,)) -> None:
        """Run a verb of the agent as an administrator's hook would: as root, for the user."""
        say(f"$ session-agent {' '.join(arguments)}")
        code = self.run(*arguments)
        self.claim(f"it ends with {code}", code in expected)

    def run(self, *arguments: str, capture_output: bool = False) -> int:
        return subprocess.run(
            [AGENT, *arguments],
            env=self.environment,
            cwd="/",
            check=False,
            timeout=60,
            capture_output=capture_output,
        ).returncode

    def claim(self, text: str, true: bool) -> None:
        say(f"  {'ok' if true else 'WRONG'}: {text}")
        if not true:
            self.failures.append(text)

    def raw_rename_fails(self) -> None:
        heading("Without the vault: rename(2) between two mounts")
        source = self.storage.vault / "engineering/plans"
        error = rename_as_user(source, self.storage.vault / "marketing/plans-of-engineering")
        say(f"  rename {source} -> marketing/: {os.strerror(error)}")
        self.claim(
            "the kernel refuses with EXDEV, though both are on one disk", error == errno.EXDEV
        )

    def vault_rename_works(self, source: str, target: str) -> None:
        """Rename one file or folder in the vault; its bytes must be the same afterwards."""
        old, new = self.storage.vault / source, self.storage.vault / target
        before = fingerprint(old)
        error = rename_as_user(old, new)
        say(f"  rename {source} -> {target}: {os.strerror(error)}")
        self.claim("it succeeds", error == 0)
        if error == 0:
            self.claim("the old name is gone", not old.exists())
            after = fingerprint(new)
            self.claim(f"{len(before)} file(s), the same byte for byte (sha256)", before == after)

    def show_files(self) -> None:
        heading("What the desktop was told")
        home, vault = self.storage.home, self.storage.vault
        self.show(home / ".config/gtk-3.0/bookmarks", "Thunar's and GTK's bookmarks")
        self.show(home / ".config/session-agent/rooms.yaml", "the sync daemon's rooms")
        self.show(home / ".config/obsidian/obsidian.json", "Obsidian's list of vaults")
        folder = vault / ".obsidian"
        if not folder.is_dir():  # no FUSE, no vault: they wait in the root branch
            folder = home / ".local/share/session-agent/root/.obsidian"
        for name in ("app.json", "core-plugins.json", "bookmarks.json"):
            self.show(folder / name, f"the vault's {name}")

    def show(self, path: Path, title: str) -> None:
        exists = path.is_file()
        self.claim(f"{title}: {path}", exists and path.stat().st_uid == USER)
        if exists:
            text = path.read_text(encoding="utf-8")
            say("".join(f"    | {line}\n" for line in text.splitlines()).rstrip())


def heading(text: str) -> None:
    say(f"\n== {text}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rename_as_user(source: Path, target: Path) -> int:
    """rename(2) in a process of the session user. Returns its errno, 0 for success."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            os.rename(source, target)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(path: Path) -> dict[str, str]:
    """The sha256 of a file, or of each file of a folder, by its path within."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def tell(story: Story) -> None:
    storage = story.storage
    for note in storage.notes:
        say(f"note: {note}")
    heading("The mounts of this session")
    story.agent("mounts")
    story.raw_rename_fails()
    heading("The session starts")
    story.agent("first-launch", expected=(0,) if storage.has_fuse else (2,))
    if storage.has_fuse:
        heading("In the vault: the same rename, and others")
        story.vault_rename_works("engineering/plans", "marketing/plans-of-engineering")
        story.vault_rename_works("marketing/plans/film.bin", "archive/film.bin")
        if storage.has_drive:
            story.vault_rename_works("marketing/README.md", "gdrive/marketing.md")
            story.vault_rename_works("gdrive/plans/launch.md", "engineering/launch.md")
        error = rename_as_user(storage.vault / "wiki/README.md", storage.vault / "archive/wiki.md")
        say(f"  rename wiki/README.md -> archive/wiki.md: {os.strerror(error)}")
        story.claim("what is read-only stays where it is", error == errno.EROFS)
    else:
        say("note: No usable /dev/fuse here, so there is no vault to rename in. The rest was done.")
    story.show_files()
    heading("A second run changes nothing")
    story.agent("first-launch", expected=(0,) if storage.has_fuse else (2,))
    if storage.has_fuse:
        heading("The session ends")
        story.agent("status")
        story.agent("stop")


def main() -> int:
    if os.geteuid() != 0:
        say("demo: needs root, to mount storage in a namespace of its own. Nothing was done.")
        return 1
    try:
        with Storage() as storage:
            story = Story(storage)
            try:
                tell(story)
            finally:
                story.run("stop", capture_output=True)
    except subprocess.CalledProcessError as error:
        say(f"demo: {' '.join(error.cmd)}: {error.stderr.decode(errors='replace').strip()}")
        return 1
    left = left_behind(storage)
    story.claim(f"nothing is left mounted or running {', '.join(left)}".rstrip(), not left)
    heading("Everything came true." if not story.failures else "Not everything came true:")
    for failure in story.failures:
        say(f"  {failure}")
    return 1 if story.failures else 0


if __name__ == "__main__":
    sys.exit(main())
