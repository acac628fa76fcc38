"""session-agent: one vault out of the mounts of a Kasm Workspaces session."""

from __future__ import annotations

__version__ = "0.1.0"
