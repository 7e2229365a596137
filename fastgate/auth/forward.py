"""Authentication by another service for each request (ForwardAuth in Traefik, auth_request in nginx).

The service receives a GET without body: the configured client headers, and the request in
`X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and `-For`, which are set by the gateway, never by the client.
A 2xx response lets the request pass, with the configured response headers for the upstream; client values of
these headers are removed from every request of the route. A 401, a 403 or a redirect is sent to the client,
with `WWW-Authenticate`, `Location` and `Set-Cookie`. Any other response counts as unavailable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final

from fastgate._core.pipeline.context import RequestContext
from fastgate.auth.claims import Resolve, TooManyWords, name_of, words
from fastgate.auth.scheme import LATER, REJECTED, RESPONDED, CounterOf, Scheme, Unavailable
from fastgate.auth.settings import ForwardConfig
from fastgate.upstream.fetch import Fetched, Fetcher, FetchError

__all__ = ["ForwardScheme"]

RELAYED: Final = (
    *("content-type", "content-encoding", "content-language", "cache-control"),
    *("location", "retry-after", "set-cookie", "www-authenticate"),
)
# If a field is repeated, the service might use one value and the upstream the other.
ONE_ONLY: Final = frozenset(("authorization", "x-api-key"))
REFUSALS: Final = frozenset((401, 403))
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))


class ForwardScheme(Scheme):
    """The scheme `forward`."""

    name = "forward"
    challenge = 'Forward realm="fastgate"'
    outcomes: ClassVar[tuple[str, ...]] = (
        *("ok", "repeated", "refused", "redirected", "consumer"),
        *("too_many", "bad_answer", "unavailable"),
    )

    def __init__(
        self,
        config: ForwardConfig,
        resolve: Resolve,
        fetcher: Fetcher,
        tiers: Iterable[str] | None = None,
        counter: CounterOf | None = None,
    ) -> None:
        super().__init__(counter)
        self.on_error = config.on_error
        #: Headers that only this scheme may set: the gate drops them from every request of the route.
        self.strips = tuple(name.lower() for name in config.upstream_headers)
        self.credential_headers = tuple(
            name for name in (*config.request_headers, *config.required_headers) if name.lower() in ONE_ONLY
        )
        self._config = config
        self._resolve = resolve
        self._tiers = None if tiers is None else frozenset(tiers)
        self._fetcher = fetcher
        self._waiting = 0

    async def close(self) -> None:
        await self._fetcher.close()

    def verify(self, ctx: RequestContext) -> Any:
        needed = self._config.required_headers
        if needed and not any(name in ctx.headers for name in needed):
            return None
        return LATER

    async def verify_later(self, ctx: RequestContext) -> Any:
        config = self._config
        if self._waiting >= config.max_waiting:
            self.count("too_many")
            raise Unavailable("too many forward-auth calls in flight")
        self._waiting += 1
        try:
            fetched = await self._fetcher.request(
                "GET",
                config.url,
                headers=self._question(ctx),
                timeout_ns=config.timeout_ns,
                max_bytes=config.max_bytes,
            )
        except FetchError as error:
            raise Unavailable(f"forward-auth: {error}") from None
        finally:
            self._waiting -= 1
        if 200 <= fetched.status < 300:
            return self._passed(ctx, fetched)
        return self._refused(ctx, fetched)

    def _question(self, ctx: RequestContext) -> list[tuple[str, str]]:
        fields = [
            ("X-Forwarded-Method", ctx.method),
            ("X-Forwarded-Proto", ctx.scheme),
            ("X-Forwarded-Host", ctx.authority_text),
            ("X-Forwarded-Uri", f"{ctx.path}?{ctx.query}" if ctx.query else ctx.path),
            ("X-Forwarded-For", ctx.client_ip),
            ("X-Request-ID", ctx.request_id),
            ("Accept-Encoding", "identity"),
        ]
        ours = {name.lower() for name, _ in fields}
        for name in self._config.request_headers:
            if name.lower() not in ours:
                fields += [(name, value) for value in ctx.headers.get_all(name)]
        return fields

    def _passed(self, ctx: RequestContext, fetched: Fetched) -> Any:
        config = self._config
        for name in config.upstream_headers:
            ctx.headers.remove(name)
            for value in fetched.headers.get_all(name):
                ctx.headers.add(name, value)

        def said(name: str | None) -> str:
            return fetched.headers.get(name, "") if name is not None else ""

        try:
            scopes = words(said(config.scopes_header)) if config.scopes_header is not None else None
            roles = words(said(config.roles_header))
        except TooManyWords as error:
            self.count("bad_answer")
            raise Unavailable(f"forward-auth: {error}") from None
        named = name_of(said(config.consumer_header))
        consumer = named or config.default_consumer
        tier = said(config.tier_header)
        identity = self._resolve(
            consumer,
            method=self.name,
            tier=tier if self._tiers is None or tier in self._tiers else "",
            default_tier=config.tier or "",
            scopes=scopes,
            roles=roles,
            shared=not named,
        )
        if identity is None:
            self.count("consumer")
            return REJECTED
        self.count("ok")
        return identity

    def _refused(self, ctx: RequestContext, fetched: Fetched) -> Any:
        is_redirect = fetched.status in REDIRECTS and "location" in fetched.headers
        if fetched.status not in REFUSALS and not is_redirect:
            self.count("bad_answer")
            raise Unavailable(f"forward-auth: status {fetched.status}")
        self.count("redirected" if is_redirect else "refused")
        if not self._config.relay_refusals:
            return REJECTED
        fields = [(name, value) for name in RELAYED for value in fetched.headers.get_all(name)]
        try:
            ctx.respond(fetched.status, fetched.body, fields)
        except ValueError as error:
            raise Unavailable(f"forward-auth: {error}") from None
        return RESPONDED
