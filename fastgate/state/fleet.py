"""The fleet: state shared by several machines through Redis or Valkey. Cached responses and purges.

The gateway is correct without Redis, which may be down, slow, flushed or another kind of server: a request
waits for it at most `timeout`, and after three consecutive failures not at all, until a background ping
succeeds in time. Stored values are sealed (state/envelope.py), so that garbage is detected.

RESPONSES  `<prefix>{<hash>}v`, written in the background from a bounded queue. Each has the position in the
stream of purges that its machine had reached when it was written. No purge that matches it was logged after
its fetch started, so every purge up to that position is older than the response.

PURGES  a stream, `<prefix>purges`. Its ids are the logical clock: a purge is XADD, and then its id under
the name of its target (`…p` of a key, `<prefix>t:` of a tag, `<prefix>all`; prefixes and patterns count as
all, because Redis has no index over keys). A response whose position is below one of those is not used. So a
purge of any number of responses is O(1), and a response that arrives late, fetched before the purge, is not
used.

THE BUS  One worker of a machine (the role BUS_ROLE of _core/epochs) reads the stream into the machine's
purge log, and sends the purges of the log to other machines. Both positions are in shared memory, so that a
successor continues where a dead holder stopped, and in Redis under the machine's name, for its next start.
A position whose entry is gone (trimmed, flushed, another server) is a gap: then this machine purges its
whole cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from hmac import compare_digest
from typing import Any, Final, NamedTuple

from fastgate._core.clock import realtime_ns
from fastgate._core.shm.epochs import Epochs, Purge
from fastgate._core.shm.metric import MetricTable
from fastgate.state.envelope import Damaged, Envelope, open_envelope, seal
from fastgate.state.redis_url import CONNECT_S, connect, masked

__all__ = ["BUS_ROLE", "Fleet"]

log = logging.getLogger(__name__)

BUS_ROLE: Final = 1
POSITION, SENT, HEARD = 0, 1, 2
"""Notes of the role: the position that was read; the purge that was sent; when Redis last replied."""

_FAILURES: Final = 3  # consecutive failures before requests skip Redis
_BACK_OFF_S: Final = (0.2, 5.0)
_BACKGROUND_S: Final = 2.0
_POLL_S: Final = 0.01  # how soon a local purge is sent
_BLOCK_S: Final = 1.0
_QUEUE_BYTES: Final = 16 << 20
_QUEUE_ITEMS: Final = 10_000
_BATCH: Final = 64
_CANCELS: Final = 10
_STREAM_LENGTH: Final = 10_000
_LONGEST_TTL_NS: Final = 7 * 86_400_000_000_000
_MARK_MS: Final = 8 * 86_400_000  # purge marks outlive every response
_SEEN_S: Final = 30 * 86_400
_IN_THREAD_BYTES: Final = 256 << 10

# A mark only ever rises, in whatever order the purges of two machines arrive.
_RAISE: Final = """
local now = redis.call('GET', KEYS[1])
if not now or now < ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""
_MAC_BYTES: Final = 16


class _Item(NamedTuple):
    key: bytes
    value: bytes
    tags: tuple[bytes, ...]
    expires_ns: int
    sequence: int


class Fleet:
    """The part of one worker. `start` on its loop; until then, and while Redis is down, nothing is found."""

    def __init__(
        self,
        url: str,
        epochs: Epochs,
        metrics: MetricTable,
        *,
        timeout_ns: int = 5_000_000,
        prefix: str = "fastgate:",
        compress_above: int = 32 << 10,
        largest_bytes: int = 8 << 20,
        machine: str = "",
        keeps_answers: bool = False,
        tls: Mapping[str, str] | None = None,
        secret: str = "",
    ) -> None:
        """machine: a name that is constant across restarts. keeps_answers: this machine has responses from
        before its start, which must not have missed a purge. secret: key of a checksum of every value; values
        without it are not used."""
        self._secret = hashlib.blake2b(secret.encode(), digest_size=32).digest() if secret else b""
        self.url = url
        self.largest_bytes = largest_bytes
        self._epochs = epochs
        self._timeout_s = timeout_ns / 1e9
        self._prefix = prefix.encode()
        self._compress_above = compress_above
        self._tls = dict(tls or {})
        self._machine = machine or "unnamed"
        self._origin = f"{self._machine}/{epochs.start:x}".encode()
        self._keeps_answers = keeps_answers
        self._client: Any = None
        self._bus_client: Any = None
        self._sentinels: list[Any] = []
        self._errors: tuple[type[BaseException], ...] = (OSError,)
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._tripped = asyncio.Event()
        self._failed_in_row = 0
        self._is_up = False
        self._logged: set[str] = set()
        self._counts = {
            event: metrics.counter("fastgate_cache_tier_total", tier="redis", event=event)
            for event in (
                *("hit", "miss", "stored", "dropped", "refused", "purged", "damaged"),
                *("error", "timeout", "skipped"),
            )
        }
        self._bus_counts = {
            event: metrics.counter("fastgate_purge_bus_total", event=event)
            for event in ("sent", "received", "resync", "error")
        }
        self._up = metrics.gauge("fastgate_redis_up")

    # ── life

    async def start(self) -> None:
        """Returns at once: the connection is made in the background, and again whenever it is lost."""
        from redis import exceptions

        self._errors = (
            *(exceptions.RedisError, exceptions.RedisClusterException),
            *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
        )
        self._client, ours = connect(self.url, self._tls, _BACKGROUND_S)
        self._bus_client, theirs = connect(self.url, self._tls, _BLOCK_S + _BACKGROUND_S)
        self._sentinels = [*ours, *theirs]
        for work in (self._write(), self._probe(), self._bus()):
            self._tasks.append(asyncio.create_task(work))

    async def close(self) -> None:
        """Writes what is queued, for a moment, and closes the connections."""
        until = time.monotonic() + 1.0
        while self._queue and self._is_up and time.monotonic() < until:
            await asyncio.sleep(0.01)
        left = {task for task in self._tasks if not task.done()}
        for _ in range(_CANCELS):
            # More than once: a cancellation that meets a time limit running out can get lost in a connection.
            for task in left:
                task.cancel()
            if not left:
                break
            _, left = await asyncio.wait(left, timeout=0.2)
        self._tasks.clear()
        self._epochs.leave(BUS_ROLE)
        for client in (self._client, self._bus_client, *self._sentinels):
            if client is not None:
                try:
                    await asyncio.wait_for(client.aclose(), 1.0)
                    pool = getattr(client, "connection_pool", None)  # a cluster has one for each node
                    if pool is not None:
                        await asyncio.wait_for(pool.disconnect(), 1.0)
                except self._errors as error:
                    self._trouble("close", str(error))
        self._sentinels.clear()
        self._client = self._bus_client = None

    @property
    def is_up(self) -> bool:
        """True if requests should use Redis: its last replies were in time."""
        return self._is_up

    def statistics(self) -> dict[str, Any]:
        return {
            "url": masked(self.url),
            "up": self._is_up,
            "queued": len(self._queue),
            **{event: counter.value for event, counter in self._counts.items()},
            **{f"purges_{event}": counter.value for event, counter in self._bus_counts.items()},
        }

    # ── responses

    async def get(self, key: bytes) -> Envelope | None:
        """The response under key, or None: absent, purged, or no reply in time."""
        if not self._is_up or self._client is None:
            self._counts["skipped"].add()
            return None
        try:
            # Not asyncio.timeout: it waits for what it cancels, and a connection that is being made may not
            # heed it at once.
            asking = asyncio.ensure_future(self._get(key))
            done, _ = await asyncio.wait((asking,), timeout=self._timeout_s)
            if not done:
                asking.add_done_callback(_forget)
                asking.cancel()
                raise TimeoutError
            found = asking.result()
        except TimeoutError:
            self._counts["timeout"].add()
            self._failed("no response in time")
            return None
        except Damaged as error:
            self._counts["damaged"].add()
            self._trouble("damaged", str(error))
            return None
        except self._errors as error:
            self._counts["error"].add()
            self._failed(str(error) or type(error).__name__)
            return None
        self._failed_in_row = 0
        self._counts["miss" if found is None else "hit"].add()
        return found

    async def _get(self, key: bytes) -> Envelope | None:
        name = self._name(key)
        # Before Redis is asked: what is sent meanwhile is not in its response.
        sent = self._epochs.note(BUS_ROLE, SENT)
        data, mark, mark_all = await self._many(
            [("GET", name + b"v"), ("GET", name + b"p"), ("GET", self._prefix + b"all")]
        )
        if data is None:
            return None
        if not isinstance(data, bytes):
            raise Damaged(f"a {type(data).__name__}")
        envelope = open_envelope(self._verified(data), key)
        if envelope is None or envelope.expires_ns <= realtime_ns():
            return None
        position = b"%020d" % envelope.sequence
        marks = [mark, mark_all]
        if envelope.tags:
            marks += await self._many([("GET", self._tag(tag)) for tag in envelope.tags])
        # Redis does not know purges of this machine that are not sent yet.
        if any(each is not None and each > position for each in marks) or self._epochs.concerns(
            key, envelope.tags, sent
        ):
            self._counts["purged"].add()
            return None
        if not envelope.is_compressed:
            return envelope
        if envelope.raw_bytes > _IN_THREAD_BYTES:
            value = await asyncio.to_thread(envelope.value)
        else:
            value = envelope.value()
        return envelope._replace(stored=value, is_compressed=False)

    def _signed(self, data: bytes) -> bytes:
        """data with the keyed checksum, where there is a key."""
        if not self._secret:
            return data
        return data + hashlib.blake2b(data, key=self._secret, digest_size=_MAC_BYTES).digest()

    def _verified(self, data: bytes) -> bytes:
        """data without its keyed checksum. Damaged when it is another one."""
        if not self._secret:
            return data
        found, told = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if not compare_digest(
            hashlib.blake2b(found, key=self._secret, digest_size=_MAC_BYTES).digest(), told
        ):
            raise Damaged("a value without the checksum of cache_store.redis.secret")
        return found

    async def _many(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """The replies to several commands in one round trip; on a cluster each goes to its node."""
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = await pipe.execute()
        return answers

    def put(self, key: bytes, value: bytes, tags: Iterable[bytes], expires_ns: int, sequence: int) -> bool:
        """True if the response is queued for writing. Never waits: on a full queue it is dropped.
        expires_ns 0: remove the key."""
        n = len(key) + len(value)
        if n > self.largest_bytes or len(key) > 0xFFFF:
            self._counts["refused"].add()
            return False
        full = self._queued_bytes + n > _QUEUE_BYTES or len(self._queue) >= _QUEUE_ITEMS
        if not self._is_up or full:
            self._counts["dropped"].add()
            return False
        self._queued_bytes += n
        self._queue.append(_Item(key, value, tuple(tags), expires_ns, sequence))
        self._wake.set()
        return True

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                self._queued_bytes -= sum(len(item.key) + len(item.value) for item in batch)
                try:
                    async with asyncio.timeout(_BACKGROUND_S):
                        stored = await self._write_batch(batch)
                    wanted = sum(item.expires_ns != 0 for item in batch)
                    self._counts["stored"].add(stored)
                    self._counts["dropped"].add(wanted - stored)
                    self._failed_in_row = 0
                except self._errors as error:
                    self._counts["dropped"].add(len(batch))
                    self._counts["error"].add()
                    self._failed(str(error) or type(error).__name__)

    async def _write_batch(self, batch: list[_Item]) -> int:
        commands: list[tuple[Any, ...]] = []
        gone = [self._name(item.key) + b"v" for item in batch if item.expires_ns == 0]
        for item in batch:
            if item.expires_ns == 0:
                continue
            # The position before the look into the log: what the log got later is not in the position.
            position = self._epochs.note(BUS_ROLE, POSITION)
            left_ns = min(item.expires_ns - realtime_ns(), _LONGEST_TTL_NS)
            if (
                not position
                or left_ns < 1_000_000
                or self._epochs.concerns(item.key, item.tags, item.sequence)
            ):
                continue
            arguments = (item.key, item.value, item.tags, item.expires_ns, position, self._compress_above)
            if len(item.value) > max(self._compress_above, _IN_THREAD_BYTES):
                data = await asyncio.to_thread(seal, *arguments)
            else:
                data = seal(*arguments)
            commands.append(
                ("SET", self._name(item.key) + b"v", self._signed(data), "PX", left_ns // 1_000_000)
            )
        if not commands and not gone:
            return 0
        answers = await self._many([*commands, *(("UNLINK", name) for name in gone)])
        # A garbled reply does not count as stored.
        return sum(answer in (True, b"OK", "OK") for answer in answers[: len(commands)])

    def _name(self, key: bytes) -> bytes:
        # The braces keep a response and its mark on one node of a cluster.
        return self._prefix + b"{" + hashlib.blake2b(key, digest_size=16).hexdigest().encode() + b"}"

    def _tag(self, tag: bytes) -> bytes:
        return self._prefix + b"t:" + hashlib.blake2b(tag, digest_size=16).hexdigest().encode()

    # ── up or down

    def _failed(self, detail: str) -> None:
        self._failed_in_row += 1
        if self._failed_in_row >= _FAILURES and self._is_up:
            self._is_up = False
            self._up.set(0)
            self._tripped.set()
            self._trouble("down", detail)

    def _trouble(self, kind: str, detail: str) -> None:
        """Logged once until it is over; counted where it happens."""
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("Redis at %s: %s", masked(self.url), detail)

    async def _probe(self) -> None:
        """Pings until Redis replies in time; then requests use it again."""
        pause_s = _BACK_OFF_S[0]
        while True:
            try:
                began = time.monotonic()
                async with asyncio.timeout(CONNECT_S + self._timeout_s):
                    answer = await self._client.ping()
                if answer is not True and answer != b"PONG":
                    raise ValueError(f"unexpected PING reply {answer!r}")
                # The first ping pays for the connection; the second one says how fast it is.
                began = time.monotonic()
                async with asyncio.timeout(CONNECT_S):
                    await self._client.ping()
                if time.monotonic() - began > max(self._timeout_s, 0.05):
                    raise TimeoutError(f"a ping took {time.monotonic() - began:.3f} s")
            except self._errors as error:
                self._counts["error"].add()
                self._trouble("down", str(error) or "no response in time")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _BACK_OFF_S[1])
                continue
            self._tripped.clear()
            self._failed_in_row = 0
            self._is_up = True
            self._up.set(1)
            self._logged.discard("down")
            pause_s = _BACK_OFF_S[0]
            await self._tripped.wait()
            await asyncio.sleep(pause_s)

    # ── the bus

    async def _bus(self) -> None:
        pause_s = _BACK_OFF_S[0]
        while True:
            if not self._epochs.claim(BUS_ROLE):
                await asyncio.sleep(0.5)
                continue
            began = time.monotonic()
            sender: asyncio.Task[None] | None = None
            try:
                await self._resync()
                sender = asyncio.create_task(self._send())
                await self._together(sender, self._listen())
            except self._errors as error:
                self._bus_counts["error"].add()
                self._trouble("bus", f"the bus of purges: {str(error) or type(error).__name__}")
            finally:
                if sender is not None:
                    sender.cancel()
            pause_s = _BACK_OFF_S[0] if time.monotonic() - began > 10 else min(pause_s * 2, _BACK_OFF_S[1])
            await asyncio.sleep(pause_s)

    @staticmethod
    async def _together(sender: asyncio.Task[None], listening: Awaitable[None]) -> None:
        """Both until one fails."""
        listener = asyncio.ensure_future(listening)
        try:
            done, _ = await asyncio.wait({sender, listener}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            listener.cancel()

    @property
    def _stream(self) -> bytes:
        return self._prefix + b"purges"

    @property
    def _seen(self) -> bytes:
        return self._prefix + b"seen:" + self._machine.encode()

    async def _resync(self) -> None:
        """Makes the position one whose entry is in the stream; what may have been missed is purged."""
        client = self._bus_client
        position = self._epochs.note(BUS_ROLE, POSITION)
        holds = position != 0 or self._keeps_answers
        if not position:
            position = _packed(await client.get(self._seen))
        if not position or not await self._exists(position):
            if holds:
                self._epochs.purge_all(far=True)
                self._bus_counts["resync"].add()
            position = _position(await client.xadd(self._stream, {"origin": self._origin, "kind": "hello"}))
            await self._keep_seen(position)
        self._epochs.set_note(BUS_ROLE, POSITION, position)
        self._logged.discard("bus")

    async def _exists(self, position: int) -> bool:
        name = _unpacked(position)
        return bool(await self._bus_client.xrange(self._stream, name, name, count=1))

    async def _keep_seen(self, position: int) -> None:
        await self._bus_client.set(self._seen, _unpacked(position), ex=_SEEN_S)

    async def _listen(self) -> None:
        epochs = self._epochs
        kept = epochs.note(BUS_ROLE, POSITION)
        while True:
            position = epochs.note(BUS_ROLE, POSITION)
            answer = await self._bus_client.xread(
                {self._stream: _unpacked(position)}, count=500, block=int(_BLOCK_S * 1000)
            )
            # Whatever came: if the entry we stood at is gone, something may have gone with it.
            if not await self._exists(position):
                await self._resync()
                continue
            epochs.set_note(BUS_ROLE, HEARD, realtime_ns())
            for name, fields in _entries(answer):
                if _position(name) <= epochs.note(BUS_ROLE, POSITION):
                    raise ValueError(f"XREAD returned entry {name!r}, which was read before")
                self._receive(fields)
                # Only now: a response stamped with this position has been compared with this purge.
                epochs.set_note(BUS_ROLE, POSITION, _packed(name))
            position = epochs.note(BUS_ROLE, POSITION)
            if position != kept:
                await self._keep_seen(position)
                kept = position

    def _receive(self, fields: dict[bytes, bytes]) -> None:
        if fields.get(b"origin") == self._origin or fields.get(b"kind") == b"hello":
            return
        kind, text = fields.get(b"kind", b"all"), fields.get(b"text", b"")
        epochs = self._epochs
        purges = {
            b"key": epochs.purge_key,
            b"tag": epochs.purge_tag,
            b"prefix": epochs.purge_prefix,
            b"pattern": epochs.purge_pattern,
        }
        self._bus_counts["received"].add()
        try:
            if kind in purges:
                purges[kind](text, far=True)
                return
        except ValueError as error:
            self._trouble("record", f"a purge that cannot be understood: {error}")
        epochs.purge_all(far=True)

    async def _send(self) -> None:
        """Tells the other machines, and Redis, of each purge made here."""
        epochs = self._epochs
        while True:
            sent = epochs.note(BUS_ROLE, SENT)
            sequence = epochs.sequence
            if sent == sequence:
                await asyncio.sleep(_POLL_S)
                continue
            records = epochs.since(sent)
            if records is None:
                records = [Purge(sequence, "all", b"", False, 0)]
            for record in records:
                if not record.is_far:
                    await self._tell(record.kind, record.text)
                    self._bus_counts["sent"].add()
                epochs.set_note(BUS_ROLE, SENT, record.sequence)
            epochs.set_note(BUS_ROLE, SENT, max(sequence, epochs.note(BUS_ROLE, SENT)))

    async def _tell(self, kind: str, text: bytes) -> None:
        client = self._client
        name = await client.xadd(
            self._stream,
            {"origin": self._origin, "kind": kind, "text": text},
            maxlen=_STREAM_LENGTH,
            approximate=True,
        )
        if kind == "key":
            mark = self._name(text) + b"p"
        elif kind == "tag":
            mark = self._tag(text)
        else:
            mark = self._prefix + b"all"
        # A purge counts as told only when Redis says so: a reply that is none leaves it to be sent again.
        raised = await client.eval(_RAISE, 1, mark, b"%020d" % _position(name), _MARK_MS)
        if raised != 1:
            raise ValueError(f"unexpected EVAL reply {raised!r}")
        if kind == "key":
            gone = await client.unlink(self._name(text) + b"v")
            if not isinstance(gone, int):
                raise ValueError(f"unexpected UNLINK reply {gone!r}")


def _forget(task: asyncio.Future[Any]) -> None:
    """Retrieves the exception of a task that is no longer awaited."""
    if not task.cancelled():
        task.exception()


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREAD reply, in RESP 2 or RESP 3."""
    if not answer:
        return []
    streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
    found: list[tuple[bytes, dict[bytes, bytes]]] = []
    for entries in streams:
        found += entries
    return found


def _packed(name: Any) -> int:
    """A stream id as a number that orders as it does; 0 for None and for what is none."""
    match = re.fullmatch(rb"([0-9]{1,15})-([0-9]{1,15})", name if isinstance(name, bytes) else b"")
    return int(match[1]) << 20 | min(int(match[2]), (1 << 20) - 1) if match else 0


def _position(name: Any) -> int:
    """The position of a stream id. ValueError if it is invalid: a garbage reply confirms nothing."""
    position = _packed(name)
    if not position:
        raise ValueError(f"expected the id of a stream entry, got {name!r}")
    return position


def _unpacked(position: int) -> bytes:
    return b"%d-%d" % (position >> 20, position & 0xFFFFF)
