"""`session-agent`, but one that never gives a crashing worker up, or does so without waiting: PATIENCE."""

from __future__ import annotations

import os
import sys

from session_agent.cli.main import main
from session_agent.lifecycle import supervisor

if __name__ == "__main__":
    if os.environ["PATIENCE"] == "endless":
        supervisor.CRASHES = 1000
        supervisor.DELAYS = (0.0,)
    else:
        supervisor.DELAYS = tuple(map(float, os.environ["PATIENCE"].split()))
    sys.exit(main())
