"""One tree of errors. Each carries the exit code a command ends with and a hint: what to do about it."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_DEGRADED = 2


class AgentError(Exception):
    """An expected failure: printed as `message` and `hint`, without a traceback.

    `hint` is a full sentence that tells the reader the remedy; it may be empty where there is none.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class SettingsError(AgentError):
    """A settings file, or an environment variable, holds something that is not understood."""


class PolicyError(AgentError):
    """A policy file, an identity, or what is asked about them, holds something that is not understood."""


class MountError(AgentError):
    """The overlay cannot be mounted, or unmounted."""


class ControlError(AgentError):
    """The running agent cannot be asked, or gave no usable answer."""


class UserFileError(AgentError):
    """A file of the session user cannot be read or written."""


class TimeLimitError(AgentError):
    """A step did not end within its time limit; what it touches may hang."""


class BranchUnavailableError(AgentError):
    """A branch is dead or hung, so nothing in it can be reached for now."""
