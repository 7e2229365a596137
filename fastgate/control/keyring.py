"""Keys and consumers: the store and the directory kept in step. The only place that writes either.

A change is stored first and then published in the directory, so that everything in effect survives a restart.
Removals are the reverse: they are in effect on every worker before they are stored, remain so if the disk
fails, and are stored as soon as possible. The directory outlives the controller. A new controller adds the
missing entries of the store, removes entries that are not in the store, and leaves the others unchanged, so
that workers are not affected.

While the store cannot be used (damaged, no access) nothing can be changed, and the entries of the directory
stay in effect.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fastgate._core.shm.directory import Directory, DirectoryFull
from fastgate.auth.consumers import effective
from fastgate.auth.section import ConsumerConfig
from fastgate.config import Config, StoreConfig
from fastgate.control.answers import Refused
from fastgate.control.keymaking import UNDECLARED, NewKey, new_key, record_of
from fastgate.state.backlog import (
    ForgetKey,
    PutConsumer,
    RemoveDocument,
    RemoveSecret,
    RevokeKey,
    Write,
)
from fastgate.state.journal import Journal, Throttle
from fastgate.state.memory import HostMemory
from fastgate.state.records import (
    CONSUMERS,
    ConsumerRecord,
    StoredConsumer,
    StoredKey,
    consumer_digest,
    document_digest,
    encode_record,
    secret_digest,
)
from fastgate.state.sealing import SealError
from fastgate.state.store import Store, StoredSecret, StoreError

__all__ = ["Keyring"]

T = TypeVar("T")

SLICE = 500
"""Keys published between two looks at the loop: about 5 ms."""

USAGE_SLICE = 2000

MOST_SHOWN = 100
"""Changes that wait for the store, in the status."""

REOPEN_S = 15.0
"""Between two tries to open a store that cannot be used; a look through a large one takes seconds."""


class Keyring:
    """The controller's operations on keys, consumers, secrets and documents."""

    def __init__(self, memory: HostMemory, journal: Journal) -> None:
        self.directory: Directory = memory.directory
        self.consumers_in_file: Mapping[str, ConsumerConfig] = {}
        self.fault = "the store is not open yet"
        """Why the store cannot be used; empty while it can."""
        self._config: Config | None = None
        self._sealed = ""  # why a secret cannot be opened
        self._journal = journal
        self._store = Store(StoreConfig().file())
        self._switching: asyncio.Task[None] | None = None
        self._interval_s = 10.0
        self._flushed_ns = 0
        self._ends: list[tuple[int, str]] = []  # heap of (expires_ns, key_id) of published keys
        counter = memory.metrics.counter
        self._changes = {
            action: counter("fastgate_keys_changed_total", action=action)
            for action in ("created", "rotated", "revoked", "changed", "expired")
        }
        self._failures = counter("fastgate_store_failures_total")
        self._entries = memory.metrics.gauge("fastgate_directory_entries")
        self._pending = memory.metrics.gauge("fastgate_store_pending_writes")
        self._guards_routes = False  # whether a route takes API keys
        self._is_stepped = False
        self._tried = 0.0  # when the store was last opened
        self._waiting = 0  # changes that are in effect and not stored
        self._throttle = Throttle(burst=1, period_s=60)

    # --- life

    async def start(self, config: Config) -> None:
        """Opens the store and publishes all of it. Does not raise: what is wrong is in `fault`."""
        self._store = Store(config.store.file())
        self._interval_s = config.store.usage_interval_ns / 1e9
        self.consumers_in_file = config.consumers
        self._config = config
        self._guards_routes = _takes_keys(config)
        self._tried = time.monotonic()
        try:
            self._store.open()
            self._count_pending()
            await self._publish_all()  # before any call may change what is being published
            self.fault = ""
            self.directory.loaded = 1
        except (StoreError, SealError) as error:
            self._failed(error)
        except DirectoryFull as error:
            self._journal.error("keys missing", problem=str(error), hint="raise memory.directory_entries")
            self.fault = ""
            self.directory.loaded = 1
        if self.fault and self.directory.loaded == 0:
            self._publish_consumers()
            self.directory.loaded = 2
        self._entries.set(self.directory.entries())

    def install(self, config: Config) -> None:
        """Applies another config: its consumers are in effect when this returns."""
        if config.store.file() != self._store.path:
            self._switching = asyncio.create_task(self._switch(config))
            return
        if self.fault:
            self._is_stepped = True  # what is published now is not all that counts
        before, self.consumers_in_file = self.consumers_in_file, config.consumers
        self._config = config
        self._guards_routes = _takes_keys(config)
        self._interval_s = config.store.usage_interval_ns / 1e9
        for name in before.keys() | config.consumers.keys():
            if before.get(name) != config.consumers.get(name):
                try:
                    self._publish_consumer(name)
                except (StoreError, DirectoryFull) as error:
                    self._journal.error("consumer not published", consumer=name, problem=str(error))

    async def _switch(self, config: Config) -> None:
        """Another file: its keys take the place of those there are. When it cannot be used they stay."""
        await self.close()
        self.fault = "another store is being opened"
        await self.start(config)

    async def run(self) -> None:
        """Ends keys when their time comes, and writes down what was used; until cancelled."""
        due = time.monotonic() + self._interval_s
        while True:
            await asyncio.sleep(min(1.0, self._interval_s))
            self._retry()
            await self._open_again()
            if self._is_stepped:
                self._is_stepped = False
                await self._publish_again()
            try:
                self._end_keys()
                if time.monotonic() >= due:
                    due = time.monotonic() + self._interval_s
                    await self.flush()
            except StoreError as error:
                self._failures.add()
                self._count_pending(str(error))

    async def flush(self) -> None:
        """Writes the uses since the last time to the store."""
        since_ns, now_ns = self._flushed_ns, time.time_ns()
        # A use is counted after its time is read: some look older than the flush that missed them.
        usages = self.directory.usages(max(0, since_ns - 5_000_000_000))
        if self.fault or not self._store.path.exists():
            return
        for start in range(0, len(usages), USAGE_SLICE):
            self._store.set_usage(usages[start : start + USAGE_SLICE])
            await asyncio.sleep(0)
        self._flushed_ns = now_ns

    async def close(self) -> None:
        try:
            await self.flush()
        except StoreError as error:
            self._journal.error("the use of keys was not written", problem=str(error))
        self._store.close()

    def health(self) -> dict[str, Any]:
        """Its part of `/health`. Without the store no key can be made; those there are stay good."""
        waiting = f"{self._waiting} changes are in effect and could not be stored" if self._waiting else ""
        lost = sum(not change.survives_restart for change in self._store.pending_changes())
        if lost:
            waiting += f"; {lost} of them will be lost when the controller ends"
        problem = self.fault or self._sealed or waiting
        facts = {
            "entries": self.directory.entries(),
            "pending_writes": self._waiting,
            "pending_in_memory_only": lost,
        }
        if not problem:
            return {"status": "healthy", **facts}
        return {"status": "degraded", "problem": problem, **facts}

    def pending_changes(self) -> list[dict[str, Any]]:
        """The changes that are in effect and not in the store yet, the first so many."""
        return [msgspec.structs.asdict(change) for change in self._store.pending_changes()[:MOST_SHOWN]]

    def outage(self) -> str:
        """Why every request with an API key gets 503; "" when it does not, or no route takes keys."""
        return self.fault if self._guards_routes and self.directory.loaded != 1 else ""

    # --- publishing

    async def _publish_all(self) -> None:
        now_ns = time.time_ns()
        started = time.monotonic()
        wanted: set[bytes] = set()
        said = {stored.name: stored for stored in self._store.consumers()}
        records = {
            name: effective(self.consumers_in_file.get(name), said.get(name))
            for name in self.consumers_in_file.keys() | said.keys()
        }
        wanted.update(consumer_digest(name) for name in records)
        self._put_consumers(records)
        for stored in self._store.secrets():
            try:
                secret = self._store.secret(stored.name)
            except SealError as error:  # a lost key must not take the API keys along
                self._sealed = str(error)
                self._journal.error("a secret is not available", problem=self._sealed)
                continue
            if secret is not None:
                wanted.add(self._put(secret_digest(stored.name), secret.encode()))
        for name, body, _version in self._store.documents():
            wanted.add(self._put(document_digest(name), body))
        self._ends = []
        count = 0
        for key in self._store.good_keys(now_ns):
            key_record = record_of(key, records.get(key.consumer, UNDECLARED))
            if key_record is not None:
                wanted.add(self._put(key.digest, encode_record(key_record), key))
                if key.expires_ns:
                    self._ends.append((key.expires_ns, key.key_id))
            count += 1
            if count % SLICE == 0:
                await asyncio.sleep(0)
        heapq.heapify(self._ends)
        for digest in self.directory.digests():
            if digest not in wanted:
                self.directory.remove(digest)
        if count:
            took_ms = round((time.monotonic() - started) * 1000)
            self._journal.info("keys published", keys=count, consumers=len(records), took_ms=took_ms)

    def _publish_consumers(self) -> None:
        """Those of the config file, when the store cannot be read."""
        self._put_consumers(
            {name: effective(config, None) for name, config in self.consumers_in_file.items()}
        )

    def _put_consumers(self, records: Mapping[str, ConsumerRecord]) -> None:
        is_changed = False
        try:
            for name, record in records.items():
                is_changed |= self.directory.put(consumer_digest(name), encode_record(record))
        finally:
            # Also when there is no space for all of them: workers cache identities (JWT) with these records.
            if is_changed:
                self.directory.announce(CONSUMERS)

    def _put(self, digest: bytes, blob: bytes, key: StoredKey | None = None) -> bytes:
        if key is None:
            self.directory.put(digest, blob)
        else:
            self.directory.put(digest, blob, key.used, key.last_used_ns)
        return digest

    def _publish_consumer(self, name: str) -> None:
        """Puts a consumer and its keys into the directory as they are now. First those it loses."""
        record = self.consumer(name)
        digest = consumer_digest(name)
        if record is None:
            self.directory.remove(digest)
        else:
            self.directory.put(digest, encode_record(record))
        self.directory.announce(CONSUMERS)
        after = None
        while keys := self._store.keys(consumer=name, after=after, limit=1000):
            for key in keys:
                self._publish_key(key, record)
            after = keys[-1]

    def _publish_key(self, key: StoredKey, consumer: ConsumerRecord | None) -> None:
        record = record_of(key, consumer or UNDECLARED) if key.is_good(time.time_ns()) else None
        if record is None:
            self.directory.remove(key.digest)
            return
        self._put(key.digest, encode_record(record), key)
        if key.expires_ns:
            heapq.heappush(self._ends, (key.expires_ns, key.key_id))

    def _end_keys(self) -> None:
        """Takes out the keys whose time has come. Workers refuse them by themselves; this makes room."""
        now_ns = time.time_ns()
        while self._ends and self._ends[0][0] <= now_ns:
            _expires_ns, key_id = heapq.heappop(self._ends)
            key = self._store.key(key_id)
            if key is not None and not key.is_good(now_ns):
                self._write_usage(key)
                if self.directory.remove(key.digest):
                    self._changes["expired"].add()
        self._entries.set(self.directory.entries())

    # --- keys

    def create(self, key: StoredKey) -> NewKey:
        """Makes a key with these properties (key_id, digest, hint and created_ns are filled in here)."""
        self._check_store()
        made = new_key(key)
        self._write(lambda: self._store.insert_keys([made.stored]))
        try:
            self._publish_key(made.stored, self.consumer(made.stored.consumer))
        except (DirectoryFull, ValueError) as error:
            self._take_away(ForgetKey(made.stored.key_id))
            raise _no_room(error) from error
        self._changes["created"].add()
        return made

    def key(self, key_id: str) -> StoredKey:
        """The key with its uses until now. Refused: 404."""
        self._check_store()
        found = self._ask(lambda: self._store.key(key_id))
        if found is None:
            raise Refused(404, f"There is no key {key_id[:60]!r}")
        return self._with_usage(found)

    def keys(self, **conditions: Any) -> list[StoredKey]:
        self._check_store()
        return [self._with_usage(key) for key in self._ask(lambda: self._store.keys(**conditions))]

    def count_keys(self, **conditions: Any) -> int:
        self._check_store()
        return self._ask(lambda: self._store.count_keys(**conditions))

    def change(self, key: StoredKey) -> StoredKey:
        """Stores and publishes a changed key; it is in effect on every worker when this returns."""
        old = self.key(key.key_id)
        self._write(lambda: self._store.update_key(key))
        try:
            self._publish_key(key, self.consumer(key.consumer))
        except (DirectoryFull, ValueError) as error:
            self._write(lambda: self._store.update_key(old))
            raise _no_room(error) from error
        self._changes["changed"].add()
        return self._with_usage(key)

    def rotate(self, key_id: str, overlap_ns: int, expires_ns: int | None) -> tuple[NewKey, StoredKey]:
        """A new key with the properties of the old one, which ends after the overlap. Refused: 404, 409.

        expires_ns: of the new one; None: it lives as long as the old one was made to.
        """
        now_ns = time.time_ns()
        old = self.key(key_id)
        state = old.state(now_ns)
        if state in ("revoked", "expired"):
            raise Refused(409, f"The key is {state}; make a new one")
        if old.replaced_by:
            raise Refused(409, f"The key was rotated before; {old.replaced_by} is in its place")
        if expires_ns is None:
            expires_ns = now_ns + (old.expires_ns - old.created_ns) if old.expires_ns else 0
        made = new_key(
            msgspec.structs.replace(
                old,
                replaces=old.key_id,
                expires_ns=expires_ns,
                not_before_ns=0,
                used=0,
                last_used_ns=0,
            )
        )
        ends_ns = now_ns + overlap_ns
        past = msgspec.structs.replace(
            old,
            replaced_by=made.stored.key_id,
            expires_ns=min(old.expires_ns, ends_ns) if old.expires_ns else ends_ns,
        )
        self._write(lambda: self._store.replace_key(past, made.stored))
        consumer = self.consumer(old.consumer)
        try:
            self._publish_key(made.stored, consumer)
        except (DirectoryFull, ValueError) as error:
            self._take_away(ForgetKey(made.stored.key_id))
            self._write(lambda: self._store.update_key(old))
            raise _no_room(error) from error
        self._publish_key(past, consumer)
        self._changes["rotated"].add()
        return made, self._with_usage(past)

    def revoke(self, key_id: str) -> StoredKey:
        """Ends a key for good: no worker takes it from the return on, whatever becomes of the disk."""
        key = self.key(key_id)
        self.directory.remove(key.digest)
        if key.revoked_ns:
            return key
        gone = msgspec.structs.replace(key, revoked_ns=time.time_ns())
        problem = self._take_away(RevokeKey(key.key_id, gone.revoked_ns))
        try:
            self._store.set_usage([(key.digest, key.used, key.last_used_ns)])
        except StoreError:  # the count of its uses is a little old then
            self._failures.add()
        self._changes["revoked"].add()
        self._check_stored("The key is refused", problem)
        return gone

    def is_pending(self, key_id: str) -> bool:
        """True for a key whose revocation is in effect and not in the store yet."""
        return self._store.is_pending(key_id)

    def _with_usage(self, key: StoredKey) -> StoredKey:
        used, last_ns = self.directory.usage(key.digest)
        return msgspec.structs.replace(
            key, used=max(key.used, used), last_used_ns=max(key.last_used_ns, last_ns)
        )

    def _write_usage(self, key: StoredKey) -> None:
        used, last_ns = self.directory.usage(key.digest)
        if used > key.used:
            self._store.set_usage([(key.digest, used, last_ns)])

    # --- consumers

    def consumer(self, name: str) -> ConsumerRecord | None:
        """The consumer's values in effect; None if it is neither in the file nor in the store."""
        config, said = self.consumers_in_file.get(name), self.said_of(name)
        return None if config is None and said is None else effective(config, said)

    def said_of(self, name: str) -> StoredConsumer | None:
        """The run-time values of a consumer."""
        return None if self.fault else self._ask(lambda: self._store.consumer(name))

    def consumer_names(self) -> list[str]:
        """Those of the config, those made at run time, and those that only keys name."""
        self._check_store()
        said = self._ask(self._store.consumers)
        keyed = self._ask(self._store.key_consumers)
        return sorted(self.consumers_in_file.keys() | {consumer.name for consumer in said} | set(keyed))

    def put_consumer(self, consumer: StoredConsumer) -> None:
        """Stores a consumer; it and its keys are in effect on every worker when this returns."""
        self._check_store()
        problem = ""
        if consumer.disabled:
            problem = self._take_away(PutConsumer(consumer))
        else:
            self._write(lambda: self._store.put_consumer(consumer))
        try:
            self._publish_consumer(consumer.name)
        except (DirectoryFull, ValueError) as error:
            raise _no_room(error) from error
        self._check_stored(f"The consumer {consumer.name!r} is disabled", problem)

    def remove_consumer(self, name: str) -> bool:
        """Forgets what was said at run time; what the config file says counts again."""
        self._check_store()
        removed = self._write(lambda: self._store.remove_consumer(name))
        if removed:
            self._publish_consumer(name)
        return removed

    # --- secrets and documents

    def put_secret(self, name: str, secret: str) -> None:
        self._check_store()
        self._write(lambda: self._store.put_secret(name, secret))
        self._put_blob(secret_digest(name), secret.encode())

    def secret(self, name: str) -> str | None:
        self._check_store()
        return self._ask(lambda: self._store.secret(name))

    def secrets(self) -> list[StoredSecret]:
        self._check_store()
        return self._ask(self._store.secrets)

    def remove_secret(self, name: str) -> bool:
        self._check_store()
        is_there = any(stored.name == name for stored in self._ask(self._store.secrets))
        self.directory.remove(secret_digest(name))
        if is_there:
            self._check_stored("The secret is gone", self._take_away(RemoveSecret(name)))
        return is_there

    def put_document(self, name: str, body: bytes) -> int:
        """Stores and publishes a named document; returns its version."""
        self._check_store()
        version = self._write(lambda: self._store.put_document(name, body))
        self._put_blob(document_digest(name), body)
        return version

    def document(self, name: str) -> tuple[bytes, int] | None:
        self._check_store()
        return self._ask(lambda: self._store.document(name))

    def remove_document(self, name: str) -> bool:
        self._check_store()
        is_there = self.document(name) is not None
        self.directory.remove(document_digest(name))
        if is_there:
            self._check_stored("It is gone", self._take_away(RemoveDocument(name)))
        return is_there

    def _put_blob(self, digest: bytes, blob: bytes) -> None:
        try:
            self.directory.put(digest, blob)
        except (DirectoryFull, ValueError) as error:
            raise _no_room(error) from error

    # --- what others keep in the store

    @property
    def path(self) -> Path:
        """The file of the store."""
        return self._store.path

    def is_open_for(self, config: Config | None) -> bool:
        """True while the store of this config can be used."""
        return config is not None and not self.fault and self._store.path == config.store.file()

    def read(self, read: Callable[[Store], T]) -> T:
        """What `read` finds in the store. Refused: 503."""
        self._check_store()
        return self._ask(lambda: read(self._store))

    def write(self, write: Callable[[Store], T]) -> T:
        """Makes a change of the store. Refused: 503, 507."""
        self._check_store()
        return self._write(lambda: write(self._store))

    # --- faults

    def _check_store(self) -> None:
        if self.fault:
            raise Refused(503, f"The store cannot be used: {self.fault}")

    def _ask(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (StoreError, SealError) as error:
            self._failures.add()
            raise Refused(503, f"The store cannot be read: {error}") from error

    def _write(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except (StoreError, SealError) as error:
            self._failures.add()
            raise Refused(507, f"Nothing was changed, the store cannot be written: {error}") from error

    def _take_away(self, write: Write) -> str:
        """Stores what is in effect already, now or when that is possible; why not yet, or ""."""
        try:
            problem = self._store.take_away(write)
        except StoreError as error:  # its file has no room either
            problem = f"{error}; and it ends with the controller"
        if problem:
            self._failures.add()
        self._count_pending(problem)
        return problem

    @staticmethod
    def _check_stored(what: str, problem: str) -> None:
        if problem:
            raise Refused(
                507,
                f"{what} from now on, but that could not be stored yet: {problem}. It is being tried again",
                pending_write=True,
            )

    def _count_pending(self, problem: str = "") -> None:
        before, self._waiting = self._waiting, self._store.pending()
        self._pending.set(self._waiting)
        if problem and self._throttle.allow("write") is not None:
            self._journal.error("the store cannot be written", problem=problem, pending=self._waiting)
        if before and not self._waiting:
            self._journal.info("pending writes are stored", writes=before)

    def _retry(self) -> None:
        """Makes the writes that wait, when there are any."""
        if self._waiting:
            try:
                self._store.retry()
            except StoreError as error:
                self._failures.add()
                self._count_pending(str(error))
            else:
                self._count_pending()

    def clock_stepped(self) -> None:
        """The realtime clock was set: keys that ended are good again, or the other way round."""
        self._is_stepped = True

    async def _publish_again(self) -> None:
        if self.fault:
            return  # it is published when the store is opened
        self.fault = "the keys are being published again, because the clock was set"
        try:
            await self._publish_all()
            self.fault = ""
        except (StoreError, SealError) as error:
            self._failed(error)
        except DirectoryFull as error:
            self.fault = ""
            self._journal.error("keys missing", problem=str(error), hint="raise memory.directory_entries")

    async def _open_again(self) -> None:
        """Tries a store that could not be used: it may have been mended, or moved away."""
        is_switching = self._switching is not None and not self._switching.done()
        if self.fault and not is_switching and time.monotonic() - self._tried > REOPEN_S:
            assert self._config is not None
            self._store.close()
            await self.start(self._config)
            if not self.fault:
                self._journal.info("the store can be used again", store=str(self._store.path))

    def _failed(self, error: Exception) -> None:
        self.fault = str(error)
        self._failures.add()
        if self._throttle.allow(self.fault) is not None:
            self._journal.error("the store cannot be used", problem=self.fault)


def _takes_keys(config: Config) -> bool:
    return any(
        route.enabled and route.auth is not None and "api_key" in route.auth.schemes
        for route in config.each_route()
    )


def _no_room(error: Exception) -> Refused:
    if isinstance(error, DirectoryFull):
        return Refused(
            507, f"No room in the directory: {error}. Raise memory.directory_entries or memory.directory"
        )
    return Refused(413, f"Too much for one entry of the directory: {error}")
