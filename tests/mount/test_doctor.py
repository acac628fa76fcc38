"""`session-agent doctor`: each check sees the real thing go wrong, and says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import storage
from tests.support.kasm_api import kasm_api
from tests.support.session import ROOT, USER, KasmSession, fuse_device, kasm_session
from tests.support.stub_fuse import stub_fuse

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

LIMIT = 10.0  # seconds, whatever hangs
Checks = dict[str, list[dict[str, str]]]


@pytest.fixture
def session() -> Iterator[KasmSession]:
    with kasm_session() as made:
        yield made


def doctor(session: KasmSession, *, as_user: bool = False, prefix: Sequence[str] = ()) -> Checks:
    """The checks by their names. Every run's shape is looked at."""
    begun = time.monotonic()
    done = session.run("doctor", "--json", as_user=as_user, prefix=prefix)
    assert time.monotonic() - begun < LIMIT
    assert done.stderr == ""
    document = json.loads(done.stdout)
    states = [check["state"] for check in document["checks"]]
    worst = max(states, key=("ok", "warn", "fail").index)
    assert document["state"] == worst
    assert done.returncode == {"ok": 0, "warn": 2, "fail": 1}[worst]
    found: Checks = {}
    for check in document["checks"]:
        assert check["detail"]
        assert (check["state"] == "ok") == (check["why"] == ""), check
        found.setdefault(check["name"], []).append(check)
    return found


def one(checks: Checks, name: str) -> dict[str, str]:
    (check,) = checks[name]
    return check


def assert_check(
    checks: Checks, name: str, state: str, detail: str, fix: str = ""
) -> dict[str, str]:
    found = [check for check in checks[name] if check["state"] == state]
    matching = [check for check in found if detail in check["detail"] and fix in check["fix"]]
    assert matching, checks[name]
    assert fix or state == "ok"
    return matching[0]


def in_namespace(script: str) -> list[str]:
    """A prefix: in a mount namespace of its own, after the script."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    return [*unshare, "sh", "-ec", f'{script}\nexec "$@"', "sh"]


def over(path: str, text: str, session: KasmSession) -> list[str]:
    """A prefix: with a file that holds `text` in the place of `path`."""
    file = session.base / path.rpartition("/")[2]
    file.write_text(text)
    file.chmod(0o644)
    return in_namespace(f"mount --bind {file} {path}")


class TestAllIsWell:
    def test_with_an_agent(self, session: KasmSession) -> None:
        session.first_launch(0)
        checks = doctor(session)
        failed = [check for found in checks.values() for check in found if check["state"] == "fail"]
        assert not failed
        assert "serves" in one(checks, "agent")["detail"]
        assert_check(checks, "mounts", "ok", "2 hold user storage")
        assert_check(checks, "state-directory", "ok", "can be written and locked")
        assert_check(checks, "foreign-events", "ok", " watched, 0 unwatched")

    def test_as_the_user_beside_roots_agent(self, session: KasmSession) -> None:
        """The user needs no right to mount: the vault is there."""
        session.first_launch(0)
        with fuse_device(session, 0o600):
            checks = doctor(session, as_user=True)
        assert_check(checks, "fuse-device", "ok", "the vault is mounted all the same")
        assert "serves" in one(checks, "agent")["detail"]

    def test_without_an_agent(self, session: KasmSession) -> None:
        checks = doctor(session)
        assert_check(checks, "agent", "warn", "no agent runs", "first-launch")
        assert_check(checks, "state-directory", "ok", "can be made")
        assert list(session.home.iterdir()) == []  # nothing was changed

    def test_for_people(self, session: KasmSession) -> None:
        done = session.run("doctor")
        assert "\nwarn  agent: no agent runs\n" in done.stdout
        assert "      -> session-agent first-launch\n" in done.stdout


class TestFuse:
    def test_it_is_not_needed_where_the_overlay_is_off(self, session: KasmSession) -> None:
        session.settings["overlay"] = {"enabled": False}
        checks = doctor(session)
        assert_check(checks, "fuse", "ok", "overlay.enabled is false")
        assert "fuse-device" not in checks

    def test_no_device(self, session: KasmSession) -> None:
        prefix = in_namespace(
            "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9"
        )
        checks = doctor(session, prefix=prefix)
        assert_check(
            checks, "fuse-device", "fail", "there is no /dev/fuse", '"devices":["/dev/fuse'
        )

    def test_another_device(self, session: KasmSession) -> None:
        checks = doctor(session, prefix=in_namespace("mount --bind /dev/null /dev/fuse"))
        assert_check(checks, "fuse-device", "fail", "is not the FUSE device", '"devices"')

    def test_a_device_that_is_closed_to_the_user(self, session: KasmSession) -> None:
        with fuse_device(session, 0o600):
            checks = doctor(session, as_user=True)
        assert_check(checks, "fuse-device", "fail", "(mode 600) is not open", "chmod 666 /dev/fuse")

    @pytest.mark.parametrize(
        ("name", "state"), [("sys_admin", "fail"), ("setuid", "fail"), ("dac_read_search", "warn")]
    )
    def test_capabilities(self, session: KasmSession, name: str, state: str) -> None:
        if name == "setuid":  # what is done as the user cannot be done then
            session.settings["user"] = 0
            session.environment["HOME"] = "/root"
            session.settings["state_dir"] = str(session.base / "state")
        checks = doctor(session, prefix=["setpriv", f"--bounding-set=-{name}"])
        assert_check(checks, "capabilities", state, f"CAP_{name.upper()}", f'"{name.upper()}"')

    def test_no_new_privileges(self, session: KasmSession) -> None:
        checks = doctor(session, as_user=True, prefix=["setpriv", "--no-new-privs"])
        assert_check(checks, "fusermount3", "fail", "no_new_privs", "no-new-privileges")
        assert_check(checks, "capabilities", "ok", "none are needed")

    def test_fusermount3_that_is_not_set_uid(self, session: KasmSession) -> None:
        program = shutil.which("fusermount3")
        assert program is not None
        shutil.copyfile(program, session.base / "fusermount3")
        (session.base / "fusermount3").chmod(0o755)
        prefix = in_namespace(f"mount --bind {session.base}/fusermount3 {program}")
        checks = doctor(session, as_user=True, prefix=prefix)
        assert_check(checks, "fusermount3", "fail", "is not set-uid root", "chmod u+s")

    def test_no_fusermount3(self, session: KasmSession) -> None:
        prefix = in_namespace(f"mount --bind /dev/null {shutil.which('fusermount3')}")
        checks = doctor(session, as_user=True, prefix=prefix)
        assert_check(checks, "fusermount3", "fail", "not installed", "apt-get install fuse3")

    def test_user_allow_other(self, session: KasmSession) -> None:
        for text, state in (("# user_allow_other\n", "warn"), ("user_allow_other\n", "ok")):
            checks = doctor(session, as_user=True, prefix=over("/etc/fuse.conf", text, session))
            fix = ">> /etc/fuse.conf" if state == "warn" else ""
            assert_check(checks, "user_allow_other", state, "/etc/fuse.conf", fix)

    def test_a_filter_that_refuses_mounts(self, session: KasmSession) -> None:
        prefix = [sys.executable, str(ROOT / "tests/support/no_mount.py")]
        checks = doctor(session, prefix=prefix)
        found = assert_check(checks, "confinement", "fail", "refuses mounts", "apparmor:unconfined")
        assert "seccomp filter on" in found["detail"]
        assert_check(doctor(session), "confinement", "ok", "mounts are allowed")

    def test_a_limit_for_requests(self, session: KasmSession) -> None:
        file = "/proc/sys/fs/fuse/max_request_timeout"
        if not os.path.exists(file):
            pytest.skip("needs a kernel with limits for FUSE requests: 6.14")
        checks = doctor(session, prefix=over(file, "15\n", session))
        assert_check(checks, "fuse-timeouts", "warn", "is 15 s", "max_request_timeout=0")
        checks = doctor(session, prefix=over(file, "600\n", session))
        assert_check(checks, "fuse-timeouts", "ok", "600")


class TestLimits:
    def test_watches(self, session: KasmSession) -> None:
        for number in range(30):
            (session.vault / f"engineering/{number}").mkdir()
        prefix = over("/proc/sys/fs/inotify/max_user_watches", "35\n", session)
        checks = doctor(session, prefix=prefix)
        assert_check(checks, "inotify", "warn", "35 watches", "max_user_watches=65536")
        assert "33 folders" in one(checks, "inotify")["detail"]
        prefix = over("/proc/sys/fs/inotify/max_user_instances", "16\n", session)
        checks = doctor(session, prefix=prefix)
        assert_check(checks, "inotify", "warn", "16 instances", "max_user_instances=512")

    def test_open_files(self, session: KasmSession) -> None:
        checks = doctor(session, prefix=["prlimit", "--nofile=600:600"])
        assert_check(checks, "open-files", "warn", "600 files", '"ulimits"')

    def test_space(self, session: KasmSession) -> None:
        with storage.tmpfs(session.base / "small", size="8m") as small:
            small.chmod(0o777)
            session.settings["state_dir"] = str(small / "state")
            assert_check(doctor(session), "space", "warn", f"{small}: 8 MiB free", "state_dir")
            (small / "full").write_bytes(b"x" * (6 << 20))
            assert_check(doctor(session), "space", "fail", f"{small}: 2 MiB free", "state_dir")

    def test_clock(self, session: KasmSession) -> None:
        session.first_launch(0)
        assert_check(doctor(session), "clock", "ok", " UTC")
        later = time.time() + 10 * 86400
        os.utime(session.state_dir / "agent.lock", (later, later))
        assert_check(doctor(session), "clock", "fail", "there are files of", "set-ntp")


class TestStorage:
    def test_a_vault_that_the_user_cannot_mount_over(self, session: KasmSession) -> None:
        checks = doctor(session, as_user=True)
        assert_check(
            checks, "vault-folder", "fail", "no folder that the user", "install -d -o 1000"
        )
        os.chown(session.vault, USER, USER)
        assert_check(doctor(session, as_user=True), "vault-folder", "ok", "can be written")
        session.settings["vault"] = str(session.base / "new/vault")
        checks = doctor(session, as_user=True)
        assert_check(checks, "vault-folder", "fail", f"{session.base} is no folder", "install -d")
        assert_check(doctor(session), "vault-folder", "ok", "root sees to")

    def test_a_home_that_ends_with_the_container(self, session: KasmSession) -> None:
        assert_check(doctor(session), "home", "warn", "(tmpfs)", '"volumes"')

    def test_a_read_only_home(self, session: KasmSession) -> None:
        with storage.bind(session.home, session.home, read_only=True):
            checks = doctor(session)
            assert_check(checks, "home", "warn", "read-only", "state_dir")
            assert_check(checks, "state-directory", "fail", "cannot be made", "state_dir")
            assert doctor(session, as_user=True).keys() == checks.keys()

    def test_a_state_directory_that_cannot_be_written(self, session: KasmSession) -> None:
        session.state_dir.mkdir(parents=True)
        assert_check(doctor(session), "state-directory", "fail", "belongs to user 0", "chown")
        for path in (session.state_dir, session.state_dir.parent):
            os.chown(path, USER, USER)
        session.state_dir.chmod(0o500)
        assert_check(doctor(session), "state-directory", "fail", "Permission denied", "state_dir")

    def test_an_agent_in_another_container(self, session: KasmSession) -> None:
        session.first_launch(0)
        prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        checks = doctor(session, prefix=prefix)
        assert_check(
            checks, "state-directory", "fail", "another container", "SESSION_AGENT_STATE_DIR"
        )

    def test_a_journal_that_cannot_be_read(self, session: KasmSession) -> None:
        session.first_launch(0)
        session.run("stop")
        (session.state_dir / "moves.journal").write_bytes(b"nonsense\n")
        assert_check(doctor(session), "moves", "warn", "journal", "session-agent recover")
        assert (session.state_dir / "moves.journal").read_bytes() == b"nonsense\n"


class TestVault:
    def test_a_dead_and_a_hung_mount(self, session: KasmSession) -> None:
        with (
            stub_fuse(session.vault / "gone") as gone,
            stub_fuse(session.vault / "slow") as slow,
        ):
            gone.die()
            slow.hang()
            checks = doctor(session)
            assert_check(checks, "mounts", "warn", f"{session.vault}/gone is dead", "umount -l")
            assert_check(checks, "mounts", "warn", f"{session.vault}/slow is hung", "umount -l")
            assert_check(checks, "inotify", "ok", "folders")
            assert_check(doctor(session, as_user=True), "mounts", "warn", "slow is hung", "umount")

    def test_a_hung_home(self, session: KasmSession) -> None:
        with stub_fuse(session.base / "network") as home:
            session.environment["HOME"] = str(home.path)
            home.hang()
            assert_check(doctor(session), "user", "fail", "does not answer", "mounted from")

    def test_an_agent_that_hangs(self, session: KasmSession) -> None:
        session.first_launch(0)
        group = os.getpgid(int(session.status()["pid"]))
        os.killpg(group, signal.SIGSTOP)
        try:
            checks = doctor(session)
        finally:
            os.killpg(group, signal.SIGCONT)
        assert_check(checks, "agent", "fail", "no answer", "stop --force")

    def test_an_agent_that_was_killed(self, session: KasmSession) -> None:
        session.first_launch(0)
        os.killpg(os.getpgid(int(session.status()["pid"])), signal.SIGKILL)
        checks = doctor(session)
        assert_check(checks, "agent", "fail", "left its mount behind", "first-launch")

    def test_targets_that_clash(self, session: KasmSession) -> None:
        session.environment["CLOUD_MOUNTS"] = f"{session.vault}/wiki|s3,{session.vault}/wiki|gdrive"
        other = session.base / "elsewhere/b"
        other.mkdir(parents=True)
        (session.base / "elsewhere/a/same").mkdir(parents=True)
        (session.base / "elsewhere/b/same").mkdir()
        with contextlib.ExitStack() as stack:
            for name in ("a", "b"):
                path = session.base / "elsewhere" / name / "same"
                stack.enter_context(storage.bind(session.base / "host/wiki", path))
            stack.enter_context(storage.bind(session.base / "host/wiki", session.vault / "wiki"))
            session.settings["mounts"]["include"] = [f"{session.base}/elsewhere/*/same"]
            checks = doctor(session)
        assert_check(checks, "targets", "warn", "another type", "CLOUD_MOUNTS")
        assert_check(checks, "targets", "warn", "2 mounts lie at", "target of its own")
        assert_check(checks, "targets", "warn", "is same-2 in the vault", "different names")

    def test_a_policy(self, session: KasmSession) -> None:
        policy = session.base / "policy.yaml"
        session.settings["policy"] = {"file": str(policy), "audit_file": None}
        checks = doctor(session)
        assert_check(checks, "policy", "fail", "policy.yaml", "policy check")
        assert_check(checks, "policy", "fail", "the mounts lie open", "fuse-device")
        assert_check(
            doctor(session, as_user=True), "policy", "fail", "binds no user", "agent as root"
        )

    def test_foreign_events(self, session: KasmSession) -> None:
        session.settings["overlay"] = {"foreign_events": False}
        session.first_launch(0)
        assert_check(doctor(session), "foreign-events", "ok", "off")


class TestDesktop:
    def test_the_environment(self, session: KasmSession) -> None:
        session.environment |= {
            "KASM_RESTRICTED_FILE_CHOOSER": "1",
            "DBUS_SESSION_BUS_ADDRESS": "unix:path=/dev/null",
        }
        checks = doctor(session)
        fix = '"KASM_RESTRICTED_FILE_CHOOSER":"0"'
        assert_check(checks, "file-chooser", "warn", "confines file dialogs", fix)
        assert_check(checks, "session-bus", "warn", "Kubernetes", "dbus-run-session")
        session.environment.clear()
        checks = doctor(session)
        assert_check(checks, "file-chooser", "ok", "the whole file system")
        assert_check(checks, "session-bus", "warn", "no desktop", "dbus-x11")

    def test_no_gvfs(self, session: KasmSession) -> None:
        hidden = (
            "for d in /usr/libexec /usr/lib/gvfs; do [ ! -d $d ] || mount -t tmpfs none $d; done"
        )
        checks = doctor(session, prefix=in_namespace(hidden))
        assert_check(checks, "gvfs", "warn", "not installed", "apt-get install gvfs")

    def test_obsidians_plugin(self, session: KasmSession) -> None:
        assert_check(doctor(session), "obsidian-plugin", "ok", "not installed")
        plugin = session.vault / ".obsidian/plugins/session-agent-moves"
        plugin.mkdir(parents=True)
        (plugin / "manifest.json").write_text("{}")
        assert_check(
            doctor(session), "obsidian-plugin", "warn", "not switched on", "Community plugins"
        )
        enabled = session.vault / ".obsidian/community-plugins.json"
        enabled.write_text('["dataview", "session-agent-moves"]')
        assert_check(doctor(session), "obsidian-plugin", "ok", "is switched on")
        enabled.write_text("[")
        assert_check(doctor(session), "obsidian-plugin", "warn", "cannot be read", "Obsidian")


class TestKasmsLog:
    def test_it_is_not_set(self, session: KasmSession) -> None:
        assert_check(doctor(session), "kasm-log", "ok", "not both set")

    def test_a_certificate_and_a_port(self, session: KasmSession, tmp_path: Path) -> None:
        session.environment |= {"KASM_API_HOST": "127.0.0.1", "KASM_API_JWT": "planted-token"}
        with kasm_api(tmp_path) as api:
            session.environment["KASM_API_PORT"] = str(api.port)
            checks = doctor(session)
            assert_check(checks, "kasm-log", "warn", "is not trusted", "log.kasm_ca_file")
            session.settings["log"] = {"kasm_ca_file": str(api.certificate)}
            assert_check(doctor(session), "kasm-log", "ok", "is trusted")
            assert api.requests == []
        assert_check(doctor(session), "kasm-log", "warn", "refused", "KASM_API_PORT")


class TestSettings:
    def test_a_mistake_in_the_file(self, session: KasmSession) -> None:
        session.settings["vautl"] = "/vault"
        checks = doctor(session)
        found = one(checks, "settings")
        assert found["state"] == "fail"
        assert "did you mean vault?" in found["detail"]
        assert "fuse-device" in checks  # the rest is looked at all the same


def unpack(path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
    return found


class TestBundle:
    def test_what_is_in_it(self, session: KasmSession) -> None:
        session.first_launch(0)
        path = session.base / "bundle.tar.gz"
        done = session.run("doctor", "--json", "--bundle", str(path))
        assert json.loads(done.stdout)["checks"]
        assert str(path) in done.stderr
        assert path.stat().st_mode & 0o777 == 0o600
        files = unpack(path)
        assert set(files) == {
            *("doctor.json", "versions.json", "settings.json", "mountinfo.txt", "status.json"),
            *("agent.log", "agent.log.1"),
        }
        assert json.loads(files["status.json"])["state"] == "running"
        assert "is ready" in files["agent.log"]
        assert json.loads(files["settings.json"])["vault"] == str(session.vault)
        assert f'"{session.vault}/wiki"' in files["mountinfo.txt"]

    def test_nothing_of_roots_is_read_or_overwritten_for_the_user(
        self, session: KasmSession
    ) -> None:
        session.first_launch(0)
        session.run("stop")
        for name in ("agent.log", "agent.log.1"):
            (session.state_dir / name).unlink()
        (session.state_dir / "agent.log").symlink_to(session.secret / "shadow")
        os.mkfifo(session.state_dir / "agent.log.1", 0o666)
        (session.home / "there").symlink_to(session.secret)
        for target in (session.secret / "shadow", session.home / "there/new.tar.gz"):
            (session.home / "link").unlink(missing_ok=True)
            (session.home / "link").symlink_to(target)
            for given in (session.home / "link", session.home / "there/new.tar.gz"):
                done = session.run("doctor", "--bundle", str(given))
                assert done.returncode == 1
                assert "cannot be written" in done.stderr
        assert os.listdir(session.secret) == ["shadow"]
        assert (session.secret / "shadow").read_text() == "root's own\n"
        path = session.home / "mine.tar.gz"
        session.run("doctor", "--bundle", str(path))
        assert path.stat().st_uid == USER
        assert "root's own" not in "".join(unpack(path).values())
        assert "agent.log" not in unpack(path)

    def test_as_the_user_and_by_default_in_tmp(self, session: KasmSession) -> None:
        with storage.bind(session.home, session.home, read_only=True):
            done = session.run("doctor", "--bundle", as_user=True)
        path = Path(done.stdout.partition("The bundle is ")[2].partition(":")[0])
        assert path.parent == Path("/tmp")
        assert path.stat().st_uid == USER
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
