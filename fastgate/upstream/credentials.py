"""Upstream credentials: their sources and their renewal.

A `CredentialProvider` owns one upstream's `Credential` (the ready bytes, `credential.pyx`) and puts values
into it: from the environment, a file, a command, the store, or an OAuth 2.0 token endpoint. It is a service
of the plan, so it starts and ends with the plan, and survives reloads that do not change it. Each worker
has its own.

A source that fails is retried after 1 s, 2 s, 4 s … up to 30 s, and logged at most once in 10 s. The last
good value is used for `keep` (a token until it expires); then requests are refused with
`credential_unavailable`. Logs, errors and metrics never contain a secret: they name its source.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec

from fastgate.state.files import Stamp, stamp_of
from fastgate.state.journal import Throttle
from fastgate.state.records import secret_digest
from fastgate.upstream.credential import Credential
from fastgate.upstream.fetch import Fetcher, FetchError, check_url
from fastgate.upstream.settings import CredentialConfig, OauthConfig, SecretSource

__all__ = ["CredentialProvider", "SourceError", "check_credential", "source_of"]

log = logging.getLogger("fastgate")

SOURCES: Final = ("env", "file", "command", "store")
LONGEST_BYTES: Final = 16_384
"""Upper bound for a secret. No server reads a header of that length."""

LOOK_S: Final = 1.0
"""Interval between checks of a file (one stat) and of the store (one load)."""

START_S: Final = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
LOUD_S: Final = 10.0
ASSUMED_LIFE_S: Final = 300
"""Lifetime of a token whose endpoint returns no `expires_in` (RFC 6749 section 5.1 only recommends it)."""

RENEW_AT: Final = 0.8
"""Share of a token's lifetime after which the next one is requested: the rest is left for a failing endpoint
to recover.
"""


class SourceError(Exception):
    """A source returned no secret. The text contains the cause and never the secret."""


class _Token(msgspec.Struct):
    access_token: str
    token_type: str = "Bearer"
    expires_in: float | None = None


def source_of(settings: SecretSource) -> str:
    """Name of the source, for example `env NAME`, for logs and messages; contains no secret."""
    if settings.env:
        return f"env {settings.env}"
    if settings.file:
        return f"file {settings.file}"
    if settings.command:
        return f"command {settings.command[0]}"
    return f"store {settings.store}"


class CredentialProvider:
    """Provides and renews one upstream's credential."""

    def __init__(self, upstream: str, settings: CredentialConfig, around: Any) -> None:
        self._upstream, self._settings, self._around = upstream, settings, around
        kind = "query" if settings.send == "query" else "header"
        self._name = (
            settings.name if settings.send in ("header", "query") and settings.name else "Authorization"
        )
        self.credential = Credential(kind, self._name)
        self._directory = around.memory.directory
        self._task: asyncio.Task[None] | None = None
        self._fetcher: Fetcher | None = None
        self._seen: Any = None
        self._value = ""
        self._failures = 0
        self._throttle = Throttle(burst=1, period_s=LOUD_S)
        counter = around.memory.metrics.counter
        self._counts = {
            outcome: counter("fastgate_credential_refreshes_total", upstream=upstream, outcome=outcome)
            for outcome in ("ok", "failed")
        }

    async def start(self) -> None:
        """Waits for the first value, but for a bounded time: a slow token endpoint must not delay the
        start."""
        asked = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(asked))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), START_S)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._fetcher is not None:
            await self._fetcher.close()
            self._fetcher = None

    async def _run(self, asked: asyncio.Event) -> None:
        while True:
            wait_s = await self._turn()
            asked.set()
            await asyncio.sleep(wait_s)

    async def _turn(self) -> float:
        """Queries the source once. Returns the seconds until the next query."""
        settings = self._settings
        try:
            if settings.oauth is not None:
                return await self._token(settings.oauth)
            value = await self._secret(settings)
            if value is not None:
                self._put(value, 0)
            self._failures = 0
            return settings.refresh_ns / 1e9 if settings.command else LOOK_S
        except asyncio.CancelledError:
            raise
        except (SourceError, OSError) as error:
            return self._failed(
                str(error) if isinstance(error, SourceError) else error.strerror or repr(error)
            )
        except Exception as error:
            return self._failed(type(error).__name__)

    def _failed(self, why: str) -> float:
        now_ns = time.monotonic_ns()
        self._counts["failed"].add()
        self._seen = None
        if self._failures == 0 and self.credential.set_ and self.credential.until_ns == 0:
            self.credential.keep_until(now_ns + self._settings.keep_ns)
        self._failures += 1
        if self._throttle.allow(self._upstream) is not None:
            source = "oauth" if self._settings.oauth is not None else source_of(self._settings)
            log.warning("credential of upstream %s: %s: %s", self._upstream, source, why)
        return min(FIRST_WAIT_S * (1 << min(self._failures - 1, 5)), LONGEST_WAIT_S)

    def _put(self, value: str, until_ns: int) -> None:
        settings = self._settings
        if settings.send == "bearer":
            shown = f"Bearer {value}"
        elif settings.send == "basic":
            pair = f"{settings.username}:{value}" if settings.username else value
            if ":" not in pair:
                raise SourceError("expected user:password, or `username` in the config")
            shown = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            shown = settings.prefix + value
        try:
            self.credential.put(self._name, shown, until_ns)
        except ValueError as error:
            raise SourceError(f"not a value for a header: {error}") from None
        self._counts["ok"].add()

    # sources

    async def _secret(self, source: SecretSource) -> str | None:
        """The secret; None if it is unchanged."""
        if source.env:
            value = os.environ.get(source.env)
            if not value:
                raise SourceError("the variable is not set")
            return self._changed(value.strip(), value)
        if source.file:
            mark = stamp_of(source.file, self._seen if isinstance(self._seen, Stamp) else None)
            if mark is not None and mark == self._seen:
                self._seen = mark  # unchanged, but the stamp may have settled
                return None
            with open(source.file, "rb") as file:
                data = file.read(LONGEST_BYTES + 1)
            return self._changed(_text(data), mark)
        if source.command:
            return self._changed(_text(await self._output(source.command)), None)
        digest = secret_digest(source.store or "")
        record = self._directory.get(digest)
        if record is None:
            raise SourceError("the store has no such secret")
        index, version, data = record
        if (index, version) == self._seen:
            return None
        return self._changed(_text(data), (index, version))

    def _changed(self, value: str, mark: Any) -> str | None:
        if not value:
            raise SourceError("it is empty")
        same = value == self._value and self.credential.set_ and not self._failures
        self._seen, self._value = mark, value
        return None if same else value

    async def _output(self, command: tuple[str, ...]) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._settings.timeout_ns / 1e9):
                data = b""
                while len(data) <= LONGEST_BYTES and (piece := await process.stdout.read(LONGEST_BYTES)):
                    data += piece
                if len(data) > LONGEST_BYTES:
                    raise SourceError(f"it printed more than {LONGEST_BYTES} bytes")
                status = await process.wait()
        except TimeoutError:
            raise SourceError("it took too long") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if status != 0:
            raise SourceError(f"it ended with status {status}")
        return data

    # OAuth 2.0

    async def _token(self, oauth: OauthConfig) -> float:
        secret = await self._secret(oauth)
        secret = self._value if secret is None else secret
        if self._fetcher is None:
            self._fetcher = Fetcher(self._around, oauth.tls)
            await self._fetcher.start()
        form = {"grant_type": "client_credentials", **oauth.parameters}
        if oauth.scopes:
            form["scope"] = " ".join(oauth.scopes)
        fields = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Accept", "application/json"),
            ("User-Agent", "fastgate"),
        ]
        if oauth.client_auth == "basic":  # each half form-encoded first (RFC 6749 section 2.3.1)
            pair = f"{quote_plus(oauth.client_id)}:{quote_plus(secret)}"
            fields.append(("Authorization", "Basic " + base64.b64encode(pair.encode()).decode()))
        else:
            form |= {"client_id": oauth.client_id, "client_secret": secret}
        try:
            answer = await self._fetcher.request(
                "POST",
                oauth.token_url,
                fields,
                urlencode(form).encode(),
                timeout_ns=self._settings.timeout_ns,
                max_bytes=4 * LONGEST_BYTES,
                repeatable=True,
            )
        except FetchError as error:
            raise SourceError(f"the token endpoint cannot be asked: {error.kind}") from None
        if answer.status != 200:
            raise SourceError(f"the token endpoint answered {answer.status}{_told(answer.body)}")
        try:
            token = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SourceError("the token endpoint returned no token (RFC 6749 section 5.1)") from None
        if token.token_type.lower() != "bearer":
            raise SourceError("the token is not of type Bearer")
        life_s = (
            ASSUMED_LIFE_S if token.expires_in is None else max(0.0, min(token.expires_in, 30 * 86_400.0))
        )
        self._put(token.access_token, time.monotonic_ns() + int(life_s * 1e9))
        self._failures = 0
        return max(1.0, life_s * RENEW_AT)


_CODES: Final = frozenset(
    (
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    )
)


def _told(body: bytes) -> str:
    """The error code of RFC 6749 section 5.2, if it is one: other text from the endpoint is not trusted in
    logs."""
    try:
        code = msgspec.json.decode(body).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return ""
    return f": {code}" if code in _CODES else ""


def _text(data: bytes) -> str:
    if len(data) > LONGEST_BYTES:
        raise SourceError(f"it is longer than {LONGEST_BYTES} bytes")
    try:
        return data.decode("ascii").strip()
    except (UnicodeDecodeError, binascii.Error):
        raise SourceError("it is not ASCII") from None


# ---- config check


def check_credential(settings: CredentialConfig, report: Callable[[str, str, str, str], None]) -> None:
    """Reports (key, found, expected, hint) for every mistake."""
    given = [key for key in (*SOURCES, "oauth") if getattr(settings, key)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        report("", found, "exactly one of env, file, command, store and oauth", "")
    if settings.send in ("header", "query"):
        if settings.name is None:
            report("name", "missing key", f"a name, as send is {settings.send}", "")
    elif settings.name is not None:
        report("name", "a setting without effect", "", f"send is {settings.send}: the field is Authorization")
    if settings.prefix and settings.send != "header":
        report("prefix", "a setting without effect", "", "it is for send: header")
    if any(not 32 <= ord(letter) < 127 for letter in settings.prefix):
        report("prefix", "a value", "printable ASCII", "")
    if settings.username is not None and (settings.send != "basic" or ":" in settings.username):
        hint = (
            "it is for send: basic" if settings.send != "basic" else "a user's name has no colon (RFC 7617)"
        )
        report("username", "a value", "", hint)
    oauth = settings.oauth
    if oauth is None:
        return
    if settings.send == "basic":
        report("send", '"basic"', "another way", "a token is no user and password")
    given = [key for key in SOURCES if getattr(oauth, key)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        report("oauth", found, "exactly one of env, file, command and store, for the client's secret", "")
    try:
        check_url(oauth.token_url)
    except ValueError as error:
        report("oauth.token_url", f'"{oauth.token_url}"', str(error) or "a URL", "")
    for reserved in ("grant_type", "client_id", "client_secret", "scope"):
        if reserved in oauth.parameters:
            report(f"oauth.parameters.{reserved}", "not allowed", "", "the gateway sets it")
