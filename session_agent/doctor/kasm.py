"""Kasm's session log: whether the agent's lines can get there."""

from __future__ import annotations

import socket

from session_agent.doctor.checks import Check, Context, ok, warn

_SECONDS = 1.0
_WHY = (
    "The agent's log does not reach Kasm's session log; it is in the state directory all the same."
)


def session_log(context: Context) -> list[Check]:
    """Connects as the log does, checks the certificate, and sends nothing."""
    name = "kasm-log"
    kasm, ca_file = context.loaded.environment.kasm, context.loaded.settings.log.kasm_ca_file
    if not (kasm.host and kasm.token):
        return ok(name, "not sent to Kasm: KASM_API_HOST and KASM_API_JWT are not both set")
    import ssl  # noqa: PLC0415 - slow to import, and needed in Kasm only

    shown = f"{kasm.host}:{kasm.port or 443}"
    try:
        trusted = ssl.create_default_context(cafile=ca_file)
        address = (kasm.host, int(kasm.port or 443))
        with (
            socket.create_connection(address, timeout=_SECONDS) as plain,
            trusted.wrap_socket(plain, server_hostname=kasm.host),
        ):
            return ok(name, f"{shown} answers, and its certificate is trusted")
    except ssl.SSLCertVerificationError as error:
        return warn(
            name,
            f"the certificate of {shown} is not trusted: {error.verify_message}",
            _WHY,
            f"As root: openssl s_client -connect {shown} </dev/null | openssl x509 >"
            " /etc/session-agent/kasm.pem; see that it is the right one, then set log.kasm_ca_file to it.",
        )
    except (OSError, ValueError) as error:
        fix = "Correct KASM_API_HOST and KASM_API_PORT, or log.kasm_ca_file; or let the container reach it."
        return warn(name, f"{shown}: {error}", _WHY, fix)
