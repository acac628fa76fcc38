"""Instants and recurring windows: when a rule holds, and when that changes next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60  # minutes


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day on some days of the week, on the clocks of one time zone.

    Minutes since midnight; `end` is not in it. One whose end is not after its start goes on past midnight,
    and belongs to the day on which it begins.
    """

    days: frozenset[int]  # 0 is Monday
    start: int
    end: int
    zone: ZoneInfo

    def contains(self, instant: datetime) -> bool:
        """Whether clocks in its zone show a time within it."""
        local = instant.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        day = local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        began_today = day in self.days and minute >= self.start
        return began_today or ((day - 1) % 7 in self.days and minute < self.end)

    def changes(self, instant: datetime) -> Iterator[datetime]:
        """The instants of the next eight days at which it may open or close, those past included."""
        local = instant.astimezone(self.zone)
        for ahead in range(-1, 9):
            day = local.date() + timedelta(days=ahead)
            for minute in (self.start, self.end):
                later, minute_of_day = divmod(minute, _DAY)
                at = time(minute_of_day // 60, minute_of_day % 60)
                for fold in (0, 1):  # an hour that clocks show twice
                    there = datetime.combine(day + timedelta(days=later), at, self.zone).replace(
                        fold=fold
                    )
                    yield there.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Validity:
    """When a rule holds: from an instant, until another (not in it), and within one of the windows."""

    start: datetime | None = None
    end: datetime | None = None
    windows: tuple[Window, ...] = ()

    @property
    def always(self) -> bool:
        """Whether it does not depend on time."""
        return self.start is None and self.end is None and not self.windows

    def holds(self, instant: datetime) -> bool:
        """Whether it holds then."""
        if self.start is not None and instant < self.start:
            return False
        if self.end is not None and instant >= self.end:
            return False
        return not self.windows or any(window.contains(instant) for window in self.windows)

    def next_change(self, instant: datetime) -> datetime | None:
        """The first instant after `instant` at which it may begin or cease to hold."""
        found = [at for at in (self.start, self.end) if at is not None]
        for window in self.windows:
            found += window.changes(instant)
        return min((at for at in found if at > instant), default=None)


def parse_instant(text: str, zone: ZoneInfo | None, *, end: bool) -> datetime:
    """An ISO 8601 instant, or a date: its beginning, or for `end` the end of that day.

    ValueError says what is wrong. Without an offset it is a time on the clocks of `zone`.
    """
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        try:
            day = date.fromisoformat(text) + timedelta(days=1 if end else 0)
        except (ValueError, OverflowError):
            raise ValueError("there is no such day") from None
        instant = datetime.combine(day, time())
    else:
        try:
            instant = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                "expected an instant, such as 2026-12-04T18:00:00Z, or a date, such as 2026-12-04"
            ) from None
    if instant.tzinfo is None:
        if zone is None:
            raise ValueError("says no time zone; end it with Z or +01:00, or give `time_zone`")
        instant = instant.replace(tzinfo=zone)
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def parse_zone(name: str) -> ZoneInfo:
    """A time zone by its name in the time zone database. ValueError says what is wrong."""
    # ZoneInfo opens a file of that name: only what can be a name is tried.
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", name):
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    raise ValueError("expected a time zone, such as Europe/Berlin or UTC")


def parse_minute(text: str) -> int:
    """`HH:MM`, 00:00 to 24:00, as minutes. ValueError says what is wrong."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if found:
        minute = int(found[1]) * 60 + int(found[2])
        if int(found[2]) < 60 and minute <= _DAY:
            return minute
    raise ValueError("expected a time of day, such as 08:30")


def parse_days(text: str) -> frozenset[int]:
    """`mon`, or `mon-fri`, as numbers of days. ValueError says what is wrong."""
    first, dash, last = text.partition("-")
    if first in DAYS and (not dash or last in DAYS):
        start = DAYS.index(first)
        count = (DAYS.index(last) - start) % 7 if dash else 0
        return frozenset((start + n) % 7 for n in range(count + 1))
    raise ValueError(f"expected a day ({', '.join(DAYS)}) or a span, such as mon-fri")
