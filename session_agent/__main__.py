"""`python -m session_agent` is `session-agent`."""

from __future__ import annotations

import sys

from session_agent.cli.main import main

sys.exit(main())
