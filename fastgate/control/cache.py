"""The response cache over the admin API: purges and statistics.

A purge is one record in the log that every worker reads before its next lookup (_core/epochs), so it is in
effect when the call returns, even if a worker is busy or the disk is slow. The response also says whether the
disk has applied it, so that it survives a restart, and whether Redis, and with it the other machines, has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastgate._core.cache.http_keys import url_pattern
from fastgate._core.http.urlpath import normal_escapes, read_url
from fastgate._core.shm.epochs import Epochs
from fastgate._core.shm.metric import MetricTable
from fastgate.caching.settings import build_rules
from fastgate.caching.tiers import purge, settled
from fastgate.control.answers import Refused, read_body
from fastgate.control.view import View

__all__ = ["CacheResource"]

MOST_AT_ONCE = 500  # half of what the purge log holds, so that no worker has to clear its cache for it
LONGEST_BYTES = 1024
_WHOLE = "expected http://host/path or https://… (a path on every host is a pattern)"
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\\]|\\\\.)*)"(?:,|\Z)')
_SAVED = ("hit", "stale", "revalidated", "coalesced", "stale_on_error")


class Purge(msgspec.Struct, forbid_unknown_fields=True):
    """What to purge: one or more of these."""

    all: bool = False
    url: str | list[str] = []
    tag: str | list[str] = []
    key: str | list[str] = []
    prefix: str | list[str] = []
    pattern: str | list[str] = []


class CacheResource:
    """`/api/cache`."""

    def __init__(self, view: View, epochs: Epochs, metrics: MetricTable) -> None:
        self._view = view
        self._epochs = epochs
        self._metrics = metrics

    def routes(self) -> list[Route]:
        return [
            Route("/api/cache", self.show, methods=["GET"]),
            Route("/api/cache/purge", self.purge, methods=["POST"]),
        ]

    async def purge(self, request: Request) -> Response:
        """Purges. In effect on every worker of this machine when the call returns."""
        wanted = await read_body(request, Purge)
        purges = list(dict.fromkeys(self._purges(wanted)))
        if not purges:
            raise Refused(400, "Expected one of all, url, tag, key, prefix, pattern")
        if len(purges) > MOST_AT_ONCE:
            raise Refused(413, f"{len(purges)} purges at once, expected {MOST_AT_ONCE} at most")
        sequence = 0
        try:
            for kind, text in purges:
                sequence = purge(self._epochs, kind, text)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        except TimeoutError as error:
            raise Refused(503, str(error)) from error
        store = self._view.config.cache_store if self._view.config is not None else None
        done = await settled(
            self._epochs,
            sequence,
            disk=store is not None and store.disk is not None,
            redis=store is not None and store.redis is not None,
        )
        return JSONResponse({"purged": len(purges), "sequence": sequence, **done})

    def _purges(self, wanted: Purge) -> Iterator[tuple[str, bytes]]:
        if wanted.all:
            yield "all", b""
        for url in _listed(wanted.url):
            for key in self._keys_of(url):
                yield "url", key
        for kind in ("tag", "key", "prefix", "pattern"):
            for text in _listed(getattr(wanted, kind)):
                raw = text.encode()
                if not raw:
                    raise Refused(400, f"{kind}: expected some text", path=f"$.{kind}")
                if kind in ("key", "prefix") and not raw.startswith(b"http"[: len(raw)]):
                    raise Refused(400, f"{kind}: {_WHOLE}, got {text[:80]!r}", path=f"$.{kind}")
                if kind == "pattern" and raw.startswith(b"/"):
                    raw = b"http*://*" + raw
                try:
                    raw = self._normal(kind, raw)
                except ValueError as error:
                    raise Refused(400, f"{kind}: {error}", path=f"$.{kind}") from error
                if kind == "key":
                    yield "url", raw  # the URL part of a key; the rest of a key is binary
                    continue
                if kind == "pattern":
                    try:
                        raw = url_pattern(raw)
                    except ValueError as error:
                        raise Refused(400, str(error), path="$.pattern") from error
                if len(raw) > LONGEST_BYTES:
                    raise Refused(400, f"{kind}: longer than {LONGEST_BYTES} bytes", path=f"$.{kind}")
                yield kind, raw

    def _normal(self, kind: str, raw: bytes) -> bytes:
        """raw, spelt as keys are. A prefix may end, and a pattern have `*`, anywhere."""
        scheme, colon, rest = raw.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        if kind == "tag" or not colon:
            return raw
        if kind == "pattern" or not slash:
            return scheme.lower() + colon + authority.lower() + slash + normal_escapes(path)
        merge = self._view.config is None or self._view.config.server.merge_slashes
        secure, authority, path, query = read_url(raw.partition(b"\0")[0], merge)
        url = (b"https://" if secure else b"http://") + authority + path
        return url if query is None else url + b"?" + query

    def _keys_of(self, url: str) -> set[bytes]:
        """The keys that this URL has on the routes that cache, which may take the query differently."""
        config = self._view.config
        merge = config is None or config.server.merge_slashes
        try:
            secure, authority, path, query = read_url(url.encode("ascii"), merge)
        except ValueError as error:
            raise Refused(400, f"url: {_WHOLE}, escaped, got {url[:80]!r}", path="$.url") from error
        routes = list(config.each_route()) if config is not None else []
        keys = set()
        for route in routes:
            if route.cache is not None:
                key = build_rules(route.cache, route).url_key(secure, authority, path, query)
                if key is not None:
                    keys.add(key)
        if not keys:
            raise Refused(409, "No route caches", path="$.url")
        return keys

    async def show(self, _request: Request) -> Response:
        """Requests by route, contents and events of the tiers, purges and fills."""
        routes: dict[str, dict[str, int]] = {}
        tiers: dict[str, dict[str, int]] = {}
        bus: dict[str, int] = {}
        redis_up = None
        for name, labels, _kind, value in self._metrics.read():
            told = _labels(labels)
            if name == "fastgate_cache_requests_total":
                routes.setdefault(told["route"], {})[told["result"]] = value
            elif name == "fastgate_cache_tier_total":
                tiers.setdefault(told["tier"], {})[told["event"]] = value
            elif name in ("fastgate_cache_tier_bytes", "fastgate_cache_tier_entries"):
                tiers.setdefault(told["tier"], {})[name.rpartition("_")[2]] = value
            elif name == "fastgate_purge_bus_total":
                bus[told["event"]] = value
            elif name == "fastgate_redis_up":
                redis_up = bool(value)
        for counts in (*routes.values(), *tiers.values()):
            asked = sum(n for result, n in counts.items() if result in (*_SAVED, "miss", "expired"))
            saved = sum(n for result, n in counts.items() if result in _SAVED)
            counts["hit_ratio"] = round(saved / asked, 4) if asked else 0  # type: ignore[assignment]
        if redis_up is not None and "redis" in tiers:
            tiers["redis"]["up"] = redis_up
        fills = self._epochs.statistics()
        return JSONResponse(
            {
                "routes": routes,
                "tiers": tiers,
                "purges": {"count": fills["purges"], **{f"bus_{event}": n for event, n in bus.items()}},
                "fills": {name: fills[name] for name in ("led", "taken_over", "crowded", "under_way")},
            }
        )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _labels(text: str) -> dict[str, str]:
    return {
        name: re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), value)
        for name, value in _LABEL.findall(text)
    }
