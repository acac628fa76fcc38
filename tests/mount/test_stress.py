"""Programs written to break file systems, with their own checks: fio and stress-ng."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import needs, run
from tests.support.vault import Storage, Vault, drop_caches

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_fuse]


# fio

# A multiple of all block sizes. Else, where the file system allocates nothing beforehand, fio looks for
# a block at the end that it has not written.
SIZE = 504 * 16384

FIO = """\
[global]
verify=crc32c
verify_fatal=1
verify_dump=0
do_verify=1
group_reporting=0
size={size}
loops={loops}

[calls-{branch}]
rw=randrw
rwmixread=40
ioengine=psync
bs=4k
verify_backlog=128
fsync=200

[mapped-{branch}]
rw=randrw
ioengine=mmap
bs=8k
verify_backlog=64

[direct-{branch}]
rw=randrw
ioengine=libaio
direct=1
iodepth=8
serialize_overlap=1
bs=16k
verify_backlog=64

[odd-{branch}]
rw=randwrite
ioengine=vsync
bs=1536
verify_backlog=256

[sequence-{branch}]
rw=write
ioengine=psync
bs=516096
end_fsync=1
"""


@needs("fio")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("branch", ["alpha", "gamma", "delta"])
def test_fio_reads_what_it_wrote(
    vault: Vault, tmp_path: Path, pytestconfig: pytest.Config, branch: str
) -> None:
    """Mixed reading and writing at random places, by calls, mappings and past the cache, all at once."""
    folder = vault.path / branch / "fio"
    folder.mkdir()
    loops = 20 if pytestconfig.getoption("--long") else 2
    jobs = tmp_path / "jobs"
    jobs.write_text(FIO.format(branch=branch, size=SIZE, loops=loops))
    for figures in fio(jobs, folder):
        # Each has written a part of its file or all of it, read the rest, and all again to verify.
        assert figures["write"]["io_bytes"] >= loops * 3 << 20
        assert figures["read"]["io_bytes"] >= loops * 7 << 20
    # And again without what the kernel knows, and what has come to the branch.
    drop_caches()
    for top in (folder, vault.backing(branch) / "fio"):
        for figures in fio(jobs, top, "--verify_only"):
            assert figures["read"]["io_bytes"] >= loops * 3 << 20
    run("rm", "-rf", folder)


def fio(jobs: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    """fio's report on each job; none may have met an error."""
    command: tuple[str | Path, ...] = (
        "fio",
        "--output-format=json",
        f"--directory={folder}",
        *options,
        jobs,
    )
    said = run(*command, cwd=jobs.parent, time_limit=400)
    report: list[dict[str, Any]] = json.loads(said[said.index("{") :])["jobs"]
    assert [job["error"] for job in report] == [0] * 5
    return report


# stress-ng


@dataclass(frozen=True)
class Batch:
    """Stressors that run side by side in one branch, by one user."""

    branch: str
    user: int
    stressors: str


BATCHES = (
    Batch(
        "alpha", 0, "access chmod chown dir dirdeep dirmany getdent filename link symlink unlink"
    ),
    Batch("gamma", 0, "hdd seek revio readahead iomix aio msync sync-file utime touch open"),
    Batch(
        "delta",
        0,
        "rename xattr fstat mknod chattr flock locka lockf lockofd fcntl lease",
    ),
    Batch(
        "gamma",
        1000,
        "copy-file fallocate fpunch sendfile splice fiemap file-ioctl dup handle verity",
    ),
    Batch(
        "alpha", 1000, "dentry chdir inotify dnotify access chmod dir rename xattr utime link open"
    ),
    Batch(
        "delta", 1000, "fstat getdent dirmany rename symlink touch hdd iomix seek copy-file flock"
    ),
)
# Files small enough for a few seconds, and for many at once on small branches.
SIZES = {
    name: f"--{name}-bytes 2m"
    for name in (
        "copy-file",
        "fallocate",
        "hdd",
        "iomix",
        "msync",
        "readahead",
        "revio",
        "sync-file",
    )
} | {"copy-file": "--copy-file-bytes 128m", "fiemap": "--fiemap-bytes 2m", "seek": "--seek-size 2m"}
# What FUSE or the overlay has not; natively they run (docs/overlay.md says what is not passed on).
MAY_SKIP = {"fiemap", "verity"}
# One turn of these can take longer than they are given: the C library allocates block by block where
# the file system does not, and a thousand attributes are set, read and removed in many ways.
SLOW = {"fallocate", "iomix", "xattr"}
IDLE = "did nothing"


@needs("stress-ng")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{batch.branch}-{batch.user}")
def test_stress(
    vault: Vault, place: Storage, pytestconfig: pytest.Config, tmp_path: Path, batch: Batch
) -> None:
    seconds = 60 if pytestconfig.getoption("--long") else 2
    available = [name for name in batch.stressors.split() if name in stressors()]
    assert len(available) > 7
    folder = vault.path / batch.branch / "stress"
    troubles = stress(folder, batch.user, available, seconds)
    # One that got no turn on a busy machine gets the machine to itself. What fails on the plain file
    # system as well says nothing about the vault.
    native = vault.backing(batch.branch) / "native"
    for name, trouble in [*troubles.items()]:
        idle = trouble.startswith(IDLE)
        if (idle and not stress(folder, batch.user, [name], 4 * seconds)) or stress(
            native, batch.user, [name], seconds
        ):
            del troubles[name]
    assert troubles == {}
    for top in (folder, native):
        assert not top.exists() or not list(top.iterdir())
        shutil.rmtree(top, ignore_errors=True)


def stressors() -> set[str]:
    """Those that this version of stress-ng has."""
    return set(re.findall(r"--([a-z-]+) N\b", run("stress-ng", "--help")))


def stress(folder: Path, user: int, names: list[str], seconds: int) -> dict[str, str]:
    """Run the stressors in `folder`, one of each at the same time. What went wrong, by the stressor."""
    folder.mkdir(exist_ok=True)
    os.chown(folder, user, user)
    options: list[str | Path] = [
        "--temp-path",
        folder,
        "--verify",
        "--timeout",
        str(seconds),
        "--metrics",
    ]
    for name in names:
        options += [f"--{name}", "1", *SIZES.get(name, "").split()]
    done = subprocess.run(
        ["stress-ng", *options],
        check=False,
        user=user,
        group=user,
        extra_groups=[],
        cwd=folder,
        timeout=seconds + 120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return judge(names, done.returncode, done.stdout)


def judge(names: list[str], status: int, said: str) -> dict[str, str]:
    operations = {
        name: int(count) for name, count in re.findall(r"\] ([a-z-]+) +(\d+) +[\d.]+ +[\d.]+", said)
    }
    skipped = set(re.findall(r"\] (?:stress-ng-)?([a-z-]+): .*skip", said)) & MAY_SKIP
    troubles = {
        name: f"{IDLE}:\n{said}"
        for name in names
        if not operations.get(name) and name not in skipped | SLOW
    }
    for line in re.findall(r"fail: .*", said):
        name = re.search(r"\] (?:stress-ng-)?([a-z-]+):", line)
        troubles[name[1] if name else "?"] = said
    if status and not troubles:
        troubles["?"] = f"ended with {status}:\n{said}"
    return troubles
