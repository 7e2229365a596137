"""The URL of a Redis or Valkey server, of its sentinels or of a cluster: check, mask, connect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["CONNECT_S", "check_url", "connect", "masked"]

_SCHEMES: Final = (
    *("redis", "rediss", "unix"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)
CONNECT_S: Final = 1.0
"""Time limit of a new connection."""
_CONNECTIONS: Final = 64


def masked(url: str) -> str:
    """The URL without its password, for logs and pages."""
    return re.sub(r"(?<=://)[^@/]*@", "***@", url)


def check_url(url: str) -> str | None:
    """The fault of a Redis URL, or None."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            return f"a URL that begins with one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}"
        if parts.scheme == "unix":
            return None if parts.path else "unix:///path/of/the.sock"
        for host, port in _hosts(parts.netloc, 6379):
            if not host or not 0 < port < 65536:
                return "host or host:port"
        first, _, second = parts.path.strip("/").partition("/")
        if parts.scheme.endswith("+sentinel") and not first:
            return "redis+sentinel://host:port,host:port/name-of-the-master"
        database = second if parts.scheme.endswith("+sentinel") else first
        if database and not re.fullmatch(r"[0-9]{1,5}", database):
            return "a number as database, such as redis://host:6379/0"
    except ValueError:
        return "a URL such as redis://host:6379/0"
    return None


def connect(url: str, tls: Mapping[str, str], timeout_s: float) -> tuple[Any, list[Any]]:
    """A client of redis-py for the URL, which connects when it is first used, and the clients of its
    sentinels, which must be closed too. timeout_s: of one reply. tls: `ca_file`, `certificate_file`,
    `key_file`.
    """
    from redis.asyncio import Redis
    from redis.asyncio import sentinel as sentinels
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    parts = urlsplit(url)
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if parts.scheme.startswith("rediss"):
        common |= {
            option: tls[name]
            for name, option in (
                ("ca_file", "ssl_ca_certs"),
                ("certificate_file", "ssl_certfile"),
                ("key_file", "ssl_keyfile"),
            )
            if tls.get(name)
        }
    if "+" not in parts.scheme:
        return Redis.from_url(url, max_connections=_CONNECTIONS, **common), []
    if parts.scheme.startswith("rediss"):
        common["ssl"] = True
    for name, value in (("username", parts.username), ("password", parts.password)):
        if value:
            common[name] = unquote(value)
    common |= {name: value for name, value in parse_qsl(parts.query) if name == "client_name"}
    if parts.scheme.endswith("+cluster"):
        host, port = _hosts(parts.netloc, 6379)[0]
        # The cluster client has its own word for "do not try again".
        return RedisCluster(host=host, port=port, max_connections=_CONNECTIONS, **common), []
    name, _, database = parts.path.strip("/").partition("/")
    make: Any = sentinels.Sentinel
    sentinel = make(
        _hosts(parts.netloc, 26379),
        sentinel_kwargs={"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S},
        **common,
    )
    master = sentinel.master_for(name, db=int(database or 0), max_connections=_CONNECTIONS)
    return master, list(sentinel.sentinels)


def _hosts(authority: str, port: int) -> list[tuple[str, int]]:
    found = []
    for each in authority.rpartition("@")[2].split(","):
        match = re.fullmatch(r"(\[[^\]]+\]|[^:]*)(?::([0-9]{1,5}))?", each)
        if match is None:
            raise ValueError(f"expected host:port, got {each!r}")
        found.append((match[1].strip("[]"), int(match[2] or port)))
    return found
