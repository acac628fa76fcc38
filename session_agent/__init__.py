"""session-agent: one vault out of the mounts of a Kasm Workspaces session."""

__version__ = "0.1.0"
