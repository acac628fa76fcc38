from __future__ import annotations

from bench.idle import calls_in

# strace 6.1, as it was seen.
BUSY = """\
strace: Process 3431 attached with 2 threads
strace: Process 3431 detached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 83.58    0.064947         208       311         1 read
  0.03    0.000021           5         4           openat
  0.00    0.000000           0         3           munmap
------ ----------- ----------- --------- --------- ----------------
100.00    0.064968         204       318         1 total
"""


def test_calls_by_name() -> None:
    assert calls_in(BUSY) == {"read": 311, "openat": 4, "munmap": 3}


def test_silence_is_not_failure() -> None:
    assert calls_in("strace: Process 3431 attached\nstrace: Process 3431 detached\n") == {}


def test_failure_is_not_silence() -> None:
    assert calls_in("strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted\n") is None
