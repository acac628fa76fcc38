"""Kasm's API, as far as the agent speaks with it: a real HTTPS server on loopback with a certificate."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class KasmApi:
    """`status` is what it answers; while `held` is clear it takes requests and does not answer."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "kasm.pem"
        self.port = 0
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self.requests: list[tuple[str, list[dict[str, Any]]]] = []
        self.asked = threading.Condition()

    def wait_for(self, text: str, seconds: float = 20.0) -> dict[str, Any]:
        """The entry whose message holds `text`, once it has come."""

        def found() -> dict[str, Any] | None:
            entries = [entry for _, batch in self.requests for entry in batch]
            return next((entry for entry in entries if text in entry["message"]), None)

        with self.asked:
            entry = self.asked.wait_for(found, seconds)
        assert entry is not None, self.requests
        return entry


@contextlib.contextmanager
def kasm_api(folder: Path) -> Iterator[KasmApi]:
    api = KasmApi(folder)
    key = folder / "kasm.key"
    _make_certificate(key, api.certificate)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with api.asked:
                api.requests.append((self.path, body))
                api.asked.notify_all()
            api.held.wait(30)
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self.send_response(api.status)
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that does not trust the certificate is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(api.certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        api.held.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _make_certificate(key_file: Path, certificate_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kasm")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
