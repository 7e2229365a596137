"""Fills the cache of a running gateway: `fastgate cache warm SOURCE`.

Owns the parsing of sources and the client that sends requests. A source is a list of URLs or paths, a
sitemap (or an index of sitemaps, also gzipped), or an access log (the gateway's JSON format, or the common
and combined formats), detected by its first bytes. The most frequent targets are requested first. All
requests go to the gateway, also those for nested sitemaps, so that no other host is contacted.

It uses a thread per connection on http.client, because the upstream takes most of the time.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import time
import xml.parsers.expat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Client", "Outcome", "SourceError", "Wanted", "read_source", "wanted_of", "warm"]

#: A sitemap has at most 50 MB (sitemaps.org), a day's access log may have more; a gzip bomb ends here.
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
MAX_SITEMAPS: Final = 1000
MAX_ERRORS: Final = 5
TIMEOUT_S: Final = 60.0

_COMMON = re.compile(r'"(?P<method>[A-Z]+) (?P<target>\S+) HTTP/[0-9.]+" (?P<status>[0-9]{3}) ')
_TARGET = re.compile(r"[!-~]+")  # allowed in a request line: ASCII, no spaces, no control characters


class SourceError(Exception):
    """The source cannot be read; the text is the cause."""


@dataclass(frozen=True)
class Wanted:
    """A target to request. `host` None: the gateway's own address."""

    target: str
    host: str | None = None


@dataclass
class Outcome:
    """The results."""

    asked: int = 0
    stored: int = 0
    already: int = 0
    not_stored: int = 0
    failed: int = 0
    bytes_received: int = 0
    elapsed_s: float = 0.0
    errors: list[str] = field(default_factory=list)


class Client:
    """Sends requests to the gateway at `base`, such as http://127.0.0.1:8080, on one persistent connection.
    One thread."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(base if "//" in base else f"http://{base}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base!r}: expected a URL such as http://127.0.0.1:8080")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._headers = {"User-Agent": "fastgate-warm", "Accept": "*/*", **(headers or {})}

    def get(self, wanted: Wanted) -> tuple[int, str, bytes]:
        """Status, Cache-Status and body. OSError or HTTPException without a response."""
        headers = {**self._headers, "Host": wanted.host} if wanted.host else self._headers
        try:
            self._connection.request("GET", wanted.target, headers=headers)
            response = self._connection.getresponse()
            body = response.read()
        except BaseException:
            self._connection.close()  # the rest of the response must not be read as the next one
            raise
        return response.status, response.headers.get("Cache-Status", ""), body

    def body(self, wanted: Wanted) -> bytes:
        """The body alone. Raises SourceError without one."""
        try:
            status, _, body = self.get(wanted)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{wanted.target}: {str(error) or repr(error)}") from error
        if status != 200:
            raise SourceError(f"{wanted.target}: status {status}")
        return body

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def read_source(data: bytes, fetch: Callable[[Wanted], bytes] | None = None) -> list[Wanted]:
    """The targets of the source, the most frequent first, each once. `fetch` reads the sitemaps that an index
    names.
    """
    data = _unpacked(data)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return _unique(_sitemap(data, fetch))
    text = data.decode("utf-8", errors="replace")
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if first.startswith("{"):
        return _most_asked(_json_log(text.splitlines()))
    if _COMMON.search(first):
        return _most_asked(_common_log(text.splitlines()))
    return _unique(_list(text.splitlines()))


def warm(
    wanted: Iterable[Wanted],
    connect: Callable[[], Client],
    *,
    connections: int = 8,
    rate_per_s: float = 0.0,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Requests all targets and returns the results. `report` is called after every response, from one thread
    at a time. A rate of 0 is unlimited.
    """
    outcome, lock = Outcome(), threading.Lock()
    waiting: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
    for each in wanted:
        waiting.put(each)
    began = time.monotonic()
    started = 0

    def next_one() -> Wanted | None:
        nonlocal started
        with lock:
            due = began + started / rate_per_s if rate_per_s else 0.0
            started += 1
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            return waiting.get_nowait()
        except queue.Empty:
            return None

    def work() -> None:
        client = connect()
        try:
            while (each := next_one()) is not None:
                try:
                    status, cache, body = client.get(each)
                    error = f"{each.target}: status {status}" if status >= 400 else ""
                except (OSError, http.client.HTTPException) as found:
                    status, cache, body, error = 0, "", b"", f"{each.target}: {str(found) or repr(found)}"
                with lock:
                    _count(outcome, cache, len(body), error)
                    outcome.elapsed_s = time.monotonic() - began
                    report(outcome)
        finally:
            client.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _count(outcome: Outcome, cache: str, received: int, error: str) -> None:
    outcome.asked += 1
    outcome.bytes_received += received
    if error:
        outcome.failed += 1
        if len(outcome.errors) < MAX_ERRORS:
            outcome.errors.append(error)
    elif re.search(r";\s*hit\b", cache):
        outcome.already += 1
    elif re.search(r";\s*stored\b", cache):
        outcome.stored += 1
    else:
        outcome.not_stored += 1


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    found = bytearray()
    while data:  # a rotated log often has several members, one after the other
        unpack = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            found += unpack.decompress(data, MAX_UNPACKED_BYTES - len(found) + 1)
        except zlib.error as error:
            raise SourceError(f"damaged gzip: {error}") from error
        if len(found) > MAX_UNPACKED_BYTES:
            raise SourceError(f"more than {MAX_UNPACKED_BYTES} bytes when unpacked")
        if not unpack.eof:
            raise SourceError("damaged gzip: unexpected end")
        data = unpack.unused_data.lstrip(b"\0")
    return bytes(found)


def wanted_of(text: str) -> Wanted | None:
    """A URL or a path; None if it cannot be requested."""
    if not _TARGET.fullmatch(text):
        return None
    if text.startswith("/"):
        return Wanted(text.partition("#")[0])
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return Wanted((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), parts.netloc)


def _list(lines: Iterable[str]) -> Iterator[Wanted]:
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("\ufeff")
        if not text or text.startswith("#"):
            continue
        found = wanted_of(text)
        if found is None:
            raise SourceError(f"line {number}: expected a URL or a path, got {text[:80]!r}")
        yield found


def _json_log(lines: Iterable[str]) -> Iterator[Wanted]:
    # A log contains what clients sent, and its last line may be incomplete: invalid lines are skipped.
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or entry.get("method") != "GET" or not _is_good(entry.get("status")):
            continue
        target, host = entry.get("target"), entry.get("host")
        found = wanted_of(target) if isinstance(target, str) else None
        if found is not None:
            is_named = isinstance(host, str) and _TARGET.fullmatch(host)
            yield Wanted(found.target, host if is_named else None)


def _common_log(lines: Iterable[str]) -> Iterator[Wanted]:
    for line in lines:
        entry = _COMMON.search(line)
        if entry and entry["method"] == "GET" and _is_good(int(entry["status"])):
            found = wanted_of(entry["target"])
            if found is not None:
                yield found


def _is_good(status: object) -> bool:
    return isinstance(status, int) and (200 <= status < 300 or status == 304)


def _most_asked(found: Iterable[Wanted]) -> list[Wanted]:
    return [wanted for wanted, _ in Counter(found).most_common()]


def _unique(found: Iterable[Wanted]) -> list[Wanted]:
    return list(dict.fromkeys(found))


def _sitemap(data: bytes, fetch: Callable[[Wanted], bytes] | None) -> Iterator[Wanted]:
    waiting, seen = [data], set[Wanted]()
    while waiting:
        is_index, places = _locations(_unpacked(waiting.pop()))
        for place in places:
            found = wanted_of(place)
            if found is None:
                continue
            if not is_index:
                yield found
            elif fetch is not None and found not in seen and len(seen) < MAX_SITEMAPS:
                seen.add(found)
                waiting.append(fetch(found))


def _locations(data: bytes) -> tuple[bool, list[str]]:
    """Whether it is an index, and the text of every <loc>. Entities are rejected: a sitemap needs none."""
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")
    stack: list[str] = []
    places: list[str] = []
    parts: list[str] = []
    root = ""

    def begin(name: str, _: object) -> None:
        nonlocal root
        stack.append(name.rpartition(" ")[2])
        root = root or stack[0]
        parts.clear()

    def end(_: str) -> None:
        # Directly in <url> or <sitemap>: image and video extensions have a <loc> of their own.
        if stack.pop() == "loc" and stack and stack[-1] in ("url", "sitemap"):
            places.append("".join(parts).strip())

    def entity(*_: object) -> None:
        raise SourceError("a sitemap must not declare entities")

    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = parts.append
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except xml.parsers.expat.ExpatError as error:
        raise SourceError(f"not a sitemap: {error}") from error
    if root not in ("urlset", "sitemapindex"):
        raise SourceError(f"not a sitemap: its root is <{root}>, expected <urlset> or <sitemapindex>")
    return root == "sitemapindex", places
