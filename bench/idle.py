"""What a contender costs while nobody uses it: memory, and waking up."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.contenders import Served, settle
from bench.failure import Failure

_TIME_LIMIT = 120.0  # seconds to look every node up
_LULL = 2.0  # seconds after which every timeout has passed
_ATTEMPTS = 3  # to watch a time in which nobody disturbs


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB of all its processes together, as /proc/PID/smaps_rollup has it."""

    pss: int
    rss: int


@dataclass(frozen=True, slots=True)
class Rest:
    """What the threads of one contender did although nobody asked for anything.

    `switches` are voluntary context switches within `seconds`, and `calls` the system calls by name
    within another such time under strace; None where it could not be attached. `disturbed`:
    somebody dropped the kernel's caches meanwhile, which the kernel tells every FUSE server.
    """

    seconds: float
    switches: int
    calls: dict[str, int] | None
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """One contender at rest. `nodes` files had been looked up before `with_nodes`, and `rest`."""

    processes: int
    after_start: Memory
    nodes: int
    with_nodes: Memory
    rest: Rest


def observe(
    contenders: Sequence[Served],
    driver: Path,
    nodes: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Idle | Failure]:
    """Start each anew and watch it. They are watched at the same time, since they do nothing."""
    found: dict[str, Idle | Failure] = {}
    sizes: dict[str, tuple[Memory, Memory]] = {}
    for contender in contenders:
        try:
            sizes[contender.name] = _fill(contender, driver, nodes)
        except Failure as failure:
            found[contender.name] = failure
    filled = [contender for contender in contenders if contender.name in sizes]
    rests: dict[str, Rest] = {}
    for _ in range(_ATTEMPTS):
        say(f"bench: watching them rest for {2 * seconds:.0f} s")
        time.sleep(_LULL)
        dropped = drops()
        rests = _rests(filled, seconds)
        if dropped == drops():
            break
        rests = {name: replace(rest, disturbed=True) for name, rest in rests.items()}
        say("bench: somebody else dropped the kernel's caches meanwhile")
    for contender in filled:
        after_start, with_nodes = sizes[contender.name]
        found[contender.name] = Idle(
            len(contender.pids()), after_start, nodes, with_nodes, rests[contender.name]
        )
    return found


def _fill(contender: Served, driver: Path, nodes: int) -> tuple[Memory, Memory]:
    """Its memory after start, and after every node has been looked up."""
    contender.stop()
    contender.start()
    settle([contender], quiet=0.5)
    after_start = memory(contender.pids())
    folder = str(contender.folder / "many")
    shown = contender.run([str(driver), "walk", folder], _TIME_LIMIT).split()[1]
    if int(shown) != nodes:
        raise Failure(f"showed {shown} of {nodes} files")
    settle([contender], quiet=0.5)
    return after_start, memory(contender.pids())


def _rests(contenders: Sequence[Served], seconds: float) -> dict[str, Rest]:
    before = {contender.name: switches(contender.pids()) for contender in contenders}
    time.sleep(seconds)
    after = {contender.name: switches(contender.pids()) for contender in contenders}
    calls = _count_calls(contenders, seconds)
    return {name: Rest(seconds, after[name] - before[name], calls[name]) for name in before}


def drops() -> str:
    """How often anybody on this machine has dropped dentries and inodes."""
    text = Path("/proc/vmstat").read_text(encoding="ascii")
    return "".join(line for line in text.splitlines() if line.startswith("drop_slab"))


def memory(pids: Sequence[int]) -> Memory:
    """Of these processes; shared pages are counted once in `pss`, in each in `rss`."""
    totals = {"Pss": 0, "Rss": 0}
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        for name in totals:
            found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
            totals[name] += int(found[1]) if found else 0
    return Memory(pss=totals["Pss"], rss=totals["Rss"])


def switches(pids: Sequence[int]) -> int:
    """How often their threads went to sleep so far."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            text = status.read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)
            total += int(found[1]) if found else 0
    return total


def _count_calls(contenders: Sequence[Served], seconds: float) -> dict[str, dict[str, int] | None]:
    if shutil.which("strace") is None:
        return {contender.name: None for contender in contenders}
    tracers = {
        contender.name: subprocess.Popen(
            ["strace", "-c", "-f", *(f"--attach={pid}" for pid in contender.pids())],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for contender in contenders
    }
    time.sleep(seconds)
    for tracer in tracers.values():
        tracer.send_signal(signal.SIGINT)
    return {name: calls_in(tracer.communicate()[1]) for name, tracer in tracers.items()}


def calls_in(summary: str) -> dict[str, int] | None:
    """The calls that `strace -c` counted, by name; None if it was not attached to anything."""
    if " attached" not in summary:
        return None
    # % time, seconds, usecs/call, calls, errors or nothing, name
    lines = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", summary, re.MULTILINE)
    return {name: int(count) for count, name in lines if name != "total"}
