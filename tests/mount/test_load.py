"""The overlay under load: many programs at once get right answers only, and nothing grows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.load_client import LINE, broken
from tests.support.trees import run
from tests.support.vault import Storage, Vault, drop_caches, serve

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]

BRANCHES = ("alpha", "beta", "gamma", "delta")
CLIENTS = 16
SECONDS = 12.0
LONG_SECONDS = 300.0

FILES_A_ROUND = 25_000
ROUNDS = 4
LONG_ROUNDS = 40
FOLDERS = 500
WARM_UP = 3  # rounds
# Bytes: what is free comes and goes by some MiB. One number kept of each file would be more, over 100,000.
MOST_GROWTH = 8 << 20


@pytest.fixture
def vault(place: Storage) -> Iterator[Vault]:
    """One that has done next to nothing yet."""
    with serve(place) as vault, vault.watched():
        os.listdir(vault.path)  # it serves by now, with all the descriptors that takes
        yield vault


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Figures are for the reader of the run, whatever else is captured."""
    with capsys.disabled():
        sys.stdout.write(f"\n    {text}")


def resident(vault: Vault) -> int:
    """Bytes."""
    memory: int = psutil.Process(vault.pid).memory_info().rss
    return memory


# Many programs


@pytest.mark.timeout(600)
def test_many_programs(
    vault: Vault, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = LONG_SECONDS if pytestconfig.getoption("--long") else SECONDS
    seed = int.from_bytes(os.urandom(4))
    make_places(vault)
    fds = vault.open_files()
    with contextlib.ExitStack() as ended:
        clients = [
            ended.enter_context(client(vault, number, seconds, seed + number))
            for number in range(CLIENTS)
        ]
        answers = []
        for number, one in enumerate(clients):
            said, errors = one.communicate(timeout=seconds + 100)
            assert one.returncode == 0, f"client {number}, seed {seed + number}:\n{errors}"
            answers.append(json.loads(said))
    check_common(vault, answers)
    report_latencies(capsys, answers, seconds)
    report = f"{resident(vault) / 2**20:.0f} MiB resident, {vault.open_files()} descriptors"
    say(capsys, f"{report} ({fds} before)\n")
    for branch in BRANCHES:
        for name in [*(f"client {number}" for number in range(CLIENTS)), "common"]:
            run("rm", "-rf", vault.path / branch / name)
        assert not list(vault.backing(branch).iterdir())
    assert forgotten_files(vault, fds) <= fds


def make_places(vault: Vault) -> None:
    for branch in BRANCHES:
        common = vault.path / branch / "common"
        common.mkdir()
        common.chmod(0o777)
        (common / "log").touch()
        (common / "log").chmod(0o666)
        for number in range(CLIENTS):
            own = vault.path / branch / f"client {number}"
            own.mkdir()
            os.chown(own, user(number), user(number))


def user(number: int) -> int:
    """Every other client is a user of its own."""
    return 2000 + number if number % 2 else 0


@contextlib.contextmanager
def client(vault: Vault, number: int, seconds: float, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [
        "-m",
        "tests.support.load_client",
        str(vault.path),
        f"client {number}",
        str(user(number)),
    ]
    with subprocess.Popen(
        [sys.executable, *command, str(seconds), str(seed), *BRANCHES],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o022,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def check_common(vault: Vault, answers: list[dict[str, dict[str, int]]]) -> None:
    """What was worked at together: no line of a log is lost, torn or doubled, no file is a mixture."""
    for branch in BRANCHES:
        for top in (vault.path / branch, vault.backing(branch)):
            log = (top / "common/log").read_bytes()
            lines = [log[at : at + LINE] for at in range(0, len(log), LINE)]
            assert all(line.endswith(b"x\n") and line.count(b"\n") == 1 for line in lines)
            found = Counter(line.split()[1] for line in lines)
            wrote = {b"%d" % n: answer["lines"].get(branch, 0) for n, answer in enumerate(answers)}
            assert found == +Counter(wrote), branch
            assert len(set(lines)) == len(lines)
            names = set(os.listdir(top / "common"))
            assert names <= {"log", "a", "b", "c"}
            assert not any(broken((top / "common" / name).read_bytes()) for name in names - {"log"})


def report_latencies(
    capsys: pytest.CaptureFixture[str],
    answers: list[dict[str, dict[str, list[int]]]],
    seconds: float,
) -> None:
    latencies: dict[str, list[int]] = defaultdict(list)
    for answer in answers:
        for what, values in answer["latencies"].items():
            latencies[what] += values
    total = sum(map(len, latencies.values()))
    say(capsys, f"{CLIENTS} clients, {seconds:.0f} s: {total} operations; milliseconds:")
    for what, values in sorted(latencies.items()):
        values.sort()
        middle, high, worst = (
            values[int((len(values) - 1) * part)] / 1000 for part in (0.5, 0.99, 1)
        )
        say(
            capsys,
            f"{what:14} {len(values):7}  median {middle:7.2f}  p99 {high:8.2f}  worst {worst:8.2f}",
        )
    assert min(map(len, latencies.values())) > CLIENTS, "some operation was hardly tried"


def forgotten_files(vault: Vault, wanted: int) -> int:
    """The number of descriptors once the kernel has forgotten all it can, which takes it several turns."""
    deadline = time.monotonic() + 10
    while (count := vault.open_files()) > wanted and time.monotonic() < deadline:
        assert drop_caches()
        time.sleep(0.1)
    return count


# Many files


@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.access("/proc/sys/vm/drop_caches", os.W_OK), reason="cannot drop caches")
def test_nothing_grows(
    vault: Vault, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files looked up, opened, missed and forgotten leave nothing behind.

    Every round makes files anew behind the vault, so they have numbers that the agent has not met.
    """
    rounds = LONG_ROUNDS if pytestconfig.getoption("--long") else ROUNDS
    fds = vault.open_files()
    say(capsys, f"at the start {resident(vault) >> 10} KiB, {fds} descriptors")
    sizes, most_fds = [], 0
    for number in range(WARM_UP + rounds):
        behind = vault.backing("delta") / f"round {number}"
        make_files(behind)
        look_up(vault.path / "delta" / behind.name)
        full, full_fds = resident(vault), vault.open_files()
        most_fds = max(most_fds, full_fds)
        assert forgotten_files(vault, fds) <= fds, f"round {number}"
        settle(vault)
        sizes.append(resident(vault))
        figures = f"{full >> 10} KiB with {FILES_A_ROUND} files, {sizes[-1] >> 10} KiB without"
        say(capsys, f"round {number}: {figures}, {full_fds} and {vault.open_files()} descriptors")
        run("rm", "-rf", behind)
    assert most_fds > fds + FOLDERS // 2, "folders that the kernel knows are not held open"
    growth = sizes[-1] - max(sizes[:WARM_UP])
    say(capsys, f"growth: {growth >> 10} KiB over {rounds * FILES_A_ROUND} files\n")
    assert growth < MOST_GROWTH


def make_files(top: Path) -> None:
    top.mkdir()
    for number in range(FOLDERS):
        folder = top / str(number)
        folder.mkdir()
        for name in range(FILES_A_ROUND // FOLDERS):
            os.close(os.open(folder / str(name), os.O_CREAT | os.O_WRONLY))


def look_up(top: Path) -> None:
    """Each file is met: by listing, every fifth by its name, every tenth opened; and some that are not."""
    count = 0
    for number in range(FOLDERS):
        folder = os.path.join(top, str(number))
        names = [str(name) for name in range(FILES_A_ROUND // FOLDERS)]
        if number % 5:
            names = os.listdir(folder)
        for name in names:
            path = os.path.join(folder, name)
            os.stat(path)
            count += 1
            if count % 10 == 0:
                os.close(os.open(path, os.O_RDONLY))
        assert not os.path.exists(os.path.join(folder, "missing"))
    assert count == FILES_A_ROUND


def settle(vault: Vault) -> None:
    """Wait until the agent has nothing to do any more: it has read all that the kernel forgets."""
    process = psutil.Process(vault.pid)
    before = -1.0
    deadline = time.monotonic() + 30
    while (now := sum(process.cpu_times()[:2])) != before and time.monotonic() < deadline:
        before = now
        time.sleep(0.3)
