"""A client of the running gateway's admin API, for the command line: one call, one JSON response.

Over TCP or a Unix socket, without TLS: the admin listener is on this host or behind a tunnel.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from fastgate.config import parse_address

__all__ = ["AdminClient", "AdminUnreachable"]


class AdminUnreachable(Exception):
    """No admin API can be reached at the address; the text is the cause."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminClient:
    """Calls the admin API at an address such as `127.0.0.1:9901`, `unix:/path` or `http://127.0.0.1:9901`."""

    def __init__(self, address: str, token: str | None, timeout_s: float) -> None:
        self._address = parse_address(address.removeprefix("http://").rstrip("/"))
        self._token = token
        self._timeout_s = timeout_s

    def call(self, method: str, target: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object of the response. AdminUnreachable without one. `body` is sent
        as JSON.
        """
        connection: http.client.HTTPConnection
        if self._address.unix_path:
            connection = _UnixConnection(self._address.unix_path, self._timeout_s)
        else:
            host = self._address.host
            # an address to listen on every interface is not one to connect to
            host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            connection = http.client.HTTPConnection(host, self._address.port, timeout=self._timeout_s)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            data = None if body is None else json.dumps(body).encode()
            if data is not None:
                headers["Content-Type"] = "application/json"
            connection.request(method, target, data, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AdminUnreachable(
                f"no response from the admin API at {self._address}: {str(cause).lower()}"
            ) from error
        finally:
            connection.close()
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise AdminUnreachable(
                f"the server at {self._address} is not the admin API (status {response.status})"
            )
        return response.status, document
