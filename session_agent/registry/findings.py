"""What is found in an entry: where, how grave, what it means, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """How grave a finding is."""

    ERROR = "error"  # Kasm, or the tool that builds a registry, cannot use the entry
    KASM = "kasm-warning"  # Kasm shows it to whoever is about to install the workspace
    WARNING = "warning"  # to be read or put right, though nobody will be told of it


@dataclass(frozen=True, slots=True)
class Finding:
    """`key` is a JSON pointer (RFC 6901), "" for the file itself. `remedy` may be empty."""

    key: str
    severity: Severity
    message: str
    remedy: str

    def told(self, file: str) -> str:
        """In one line."""
        parts = [file, str(self.severity), *([self.key] if self.key else [])]
        return f"{': '.join(parts)}: {self.message} {self.remedy}".rstrip()


@dataclass
class Findings:
    """What has been found so far. The check goes on, so that one run tells everything."""

    found: list[Finding] = field(default_factory=list)

    def error(self, key: str, message: str, remedy: str) -> None:
        """Note what makes the entry unusable."""
        self.found.append(Finding(key, Severity.ERROR, message, remedy))

    def kasm(self, key: str, message: str, remedy: str) -> None:
        """Note what Kasm will show."""
        self.found.append(Finding(key, Severity.KASM, message, remedy))

    def warn(self, key: str, message: str, remedy: str) -> None:
        """Note what is to be read, or probably not meant."""
        self.found.append(Finding(key, Severity.WARNING, message, remedy))

    @property
    def valid(self) -> bool:
        """Whether nothing makes the entry unusable."""
        return all(one.severity is not Severity.ERROR for one in self.found)


def below(key: str, name: str | int) -> str:
    """The pointer to what lies below `key` by that name or position."""
    return f"{key}/{str(name).replace('~', '~0').replace('/', '~1')}"
