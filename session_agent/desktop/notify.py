"""Desktop notifications, as https://specifications.freedesktop.org/notification-spec has them."""

from __future__ import annotations

from jeepney import (  # type: ignore[import-untyped]
    DBusAddress,
    HeaderFields,
    MessageType,
    new_method_call,
)
from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]

from session_agent.desktop.bus import Desktop
from session_agent.errors import AgentError

_SERVICE = DBusAddress(
    "/org/freedesktop/Notifications",
    bus_name="org.freedesktop.Notifications",
    interface="org.freedesktop.Notifications",
)
_NAME = "session-agent"
_ANSWER_SECONDS = 3.0  # the service may have to be started first


class NotifyError(AgentError):
    """The desktop has no notification service, or it did not answer."""


def notify(
    desktop: Desktop, summary: str, body: str = "", *, icon: str = "", replaces: int = 0
) -> int:
    """Show a notification, in place of the one numbered `replaces` if that is still shown.

    Returns the notification's number. `body` is shown as it is: what a desktop would take for
    markup is escaped. Must be called with the desktop user's rights. Raises NotifyError.
    """
    text = body.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    message = new_method_call(
        _SERVICE,
        "Notify",
        "susssasa{sv}i",
        (_NAME, replaces, icon, summary, text, [], {}, -1),
    )
    try:
        with open_dbus_connection(bus=desktop.address, auth_timeout=_ANSWER_SECONDS) as connection:
            reply = connection.send_and_get_reply(message, timeout=_ANSWER_SECONDS)
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        raise NotifyError(f"The session bus cannot be asked: {error}.") from error
    if reply.header.message_type is not MessageType.method_return:
        reason = reply.header.fields.get(HeaderFields.error_name, "no reason given")
        raise NotifyError(f"No notification could be shown: {reason}.")
    number = reply.body[0] if reply.body else 0
    return number if isinstance(number, int) else 0
