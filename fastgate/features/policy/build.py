"""The policy engine: rules with a condition in CEL, decided on every request of the routes they belong to.

`PolicyConfig` is what the operator writes. `Language` is the one place that knows the CEL library: which
variables and functions there are, how an expression is compiled, and what a compile error says about where.
A `RuleSet` is the rules of one route, compiled together; the gate asks it once per request. `Policies` is
what the rules of all routes of one worker share: compiled sets, counters, the ring of violations, the rules
set at run time.

The library is cel-expr-python, Google's C++ evaluator. Every variable is declared with its type and its
full dotted name (`request.path`), so that a misspelt name or a wrong type is an error of the config and not
of a request, and so that only what an expression names is ever built. It bounds itself in steps of loops
(10 000), levels (32) and characters (100 000), but not in time: it compiles the pattern of `matches` at every
call, and its other text functions copy what they are given as often as they are asked. So those functions are
the gateway's own (`_TEXT_FUNCTIONS`): patterns are compiled once, and each call is paid from the budget of
its request. Why this library: docs/dependencies.md.

A condition that cannot be decided fails closed, whatever its `on_error` says: when a bound was reached, and
when a value that it reads is there more than once, for the upstream might go by another one.

The conditions of a set are compiled twice: one by one, and all of them joined by `||`. Most requests match
nothing, and then the joined one says so in a single call; an error in it, or a match, leads to the single
ones.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from fastgate._core.gates.policy import WatchingGate
from fastgate._core.http.automaton import CALL_NS, Automaton, Budget, Exhausted, Patterns, Unsupported
from fastgate._core.http.cidr import CidrSet
from fastgate._core.limits.keyed import KeyedLimiter
from fastgate._core.limits.limits import SlidingWindow
from fastgate._core.pipeline.context import CLIENT, CONTINUE, SUSPEND, RequestContext
from fastgate._core.shm.directory import Directory
from fastgate._core.shm.recordring import RecordRing
from fastgate._core.shm.table import LimiterTable
from fastgate.errors import REASONS, Reason
from fastgate.plugin import FeatureEnv
from fastgate.settings import MINUTE, SECOND, Duration, Settings, Text, duration_text, wildcard_matches
from fastgate.state.records import document_digest

__all__ = [
    "FUNCTIONS",
    "VARIABLES",
    "ExpressionError",
    "Language",
    "Policies",
    "PolicyConfig",
    "PolicyGate",
    "PolicyLimit",
    "RootKeys",
    "RouteKeys",
    "Rule",
    "RuleSet",
    "Violation",
    "ViolationLog",
    "build",
    "check_policy",
    "is_available",
    "language",
]

log = logging.getLogger("fastgate")

INSTALL: Final = "pip install 'fastgate[policy]'"

LIMIT_KEYS: Final = 10_000
"""Keys of a `limit` action where there is no table of the host's: `fastgate explain`, tests."""

LOAD_S, LOAD_POLL_S = 5.0, 0.005
"""How long the first requests of a gateway wait for the policies of the store, which takes a blink."""

MOST_PROGRAMS: Final = 512
"""Compiled conditions that are kept beside those in use, some 50 kB each."""

COUNTED: Final = 1_000_000_000
"""The bound of a window that only counts: more requests in an hour than any gateway sees."""


BUDGET_NS: Final = 20_000_000
"""What the conditions of one request may cost in functions that work on texts: usually microseconds."""

MOST_PARTS: Final = 1024
MOST_COPIED: Final = 256
"""Elements of a list. `map` and `filter` copy the list at every step: their time goes with the square."""

MOST_TEXT: Final = 1 << 20
"""Bytes that `replace` may make."""

MOST_PATTERN: Final = 1000
"""Characters of a pattern that is compiled once."""

FOREIGN_PATTERN_NS: Final = 500_000
"""A pattern that only RE2 takes, which compiles it at every call."""


class PolicyLimit(Settings, frozen=True, kw_only=True):
    """How many requests the `limit` action lets through, over a sliding window, for all workers together."""

    requests: Annotated[int, Meta(ge=1, le=1_000_000_000, description="Requests in any window of `per`.")]
    per_ns: Annotated[Duration, Meta(ge=1_000_000_000, description="Length of the window.")] = MINUTE
    by: Annotated[
        Literal["consumer", "client_ip", "route", "all"],
        Meta(
            description=(
                "What has a count of its own. A request without a consumer counts for its address; "
                "`all` is one "
                "count for the policy."
            )
        ),
    ] = "consumer"


class PolicyConfig(Settings, frozen=True, kw_only=True):
    """One rule: when its condition holds, its action is taken."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?$(?!\n)",
            description="Name in metrics, in the list of violations and on routes; unique.",
        ),
    ]
    when: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=10_000,
            description=(
                'The condition in CEL, such as `request.method == "DELETE" && consumer.tier != "internal"`. '
                "It is compiled when the config is read; docs/policies.md has the variables."
            ),
        ),
    ]
    action: Annotated[
        Literal["allow", "deny", "tag", "route", "limit"],
        Meta(
            description=(
                "`deny` refuses; `allow` ends the walk, so that rules of lower priority are not asked; `tag` "
                "notes `tags` on the request; `route` sends it to `upstream`; `limit` refuses what "
                "is above `limit`."
            )
        ),
    ] = "deny"
    priority: Annotated[
        int,
        Meta(
            ge=-1_000_000,
            le=1_000_000,
            description="Higher is asked first. Equal ones: in the order of the file, the route's own last.",
        ),
    ] = 0
    status: Annotated[int, Meta(ge=400, le=599, description="Status of a `deny`.")] = 403
    message: Annotated[
        str,
        Meta(max_length=200, description="What the client of a `deny` reads. Default: Forbidden."),
    ] = ""
    tags: Annotated[
        tuple[Text, ...],
        Meta(extra={"one_or_many": True}, description="What a `tag` notes, for logs and plugins."),
    ] = ()
    upstream: Annotated[
        Text | None, Meta(description="The entry of `upstreams` that a `route` sends to.")
    ] = None
    limit: Annotated[PolicyLimit | None, Meta(description="What a `limit` lets through.")] = None
    on_error: Annotated[
        Literal["deny", "skip"],
        Meta(
            description=(
                "What an error in the condition does, such as a header that is asked for and not there: "
                "refuse, or go on to the next rule. Both are counted."
            )
        ),
    ] = "deny"
    routes: Annotated[
        tuple[Text, ...],
        Meta(
            extra={"one_or_many": True},
            description=(
                "Of a policy in the root: names of routes it belongs to, with `*` for any text, besides the "
                'routes that name it. `"*"` is every route.'
            ),
        ),
    ] = ()
    enforce: Annotated[
        bool,
        Meta(description="false: what it would refuse is counted and listed, and goes on."),
    ] = True


class RouteKeys(Settings, frozen=True, kw_only=True):
    """Its keys in a route."""

    manual_order: ClassVar[int] = 120

    policies: Annotated[
        tuple[str | PolicyConfig, ...],
        Meta(
            max_length=200,
            extra={"one_or_many": True},
            description="Policies of this route: names of those in the root, or policies in place.",
        ),
    ] = ()


class RootKeys(Settings, frozen=True, kw_only=True):
    """Its keys in the root."""

    manual_order: ClassVar[int] = 20

    policies: Annotated[
        tuple[PolicyConfig, ...],
        Meta(
            max_length=1000,
            description="Policies: rules with a condition in CEL. They are in force on the routes "
            "that name them, and on those they name.",
        ),
    ] = ()


# ---- the language


class ExpressionError(ValueError):
    """An expression that does not compile: what is wrong, and where (line and column from 1, 0 when
    unknown).
    """

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        place = (
            f"line {line}, character {column}: " if line > 1 else f"character {column}: " if column else ""
        )
        super().__init__(place + problem)
        self.problem, self.line, self.column = problem, line, column


Source = Callable[[RequestContext, "Moment"], Any]


class Moment:
    """What the variables of one request are read from besides the request: the clock and the counts."""

    __slots__ = ("counts", "longest", "now_ns", "repeated", "utc")

    def __init__(self, now_ns: int, counts: Counts | None) -> None:
        self.now_ns = now_ns
        self.counts = counts
        self.repeated: set[tuple[str, str]] | None = None
        """(map, key) of what the request has more than once."""
        self.longest = 0
        """Elements of the longest list or map."""
        self.utc = time.gmtime()

    def note_repeated(self, kind: str, name: str) -> None:
        if self.repeated is None:
            self.repeated = set()
        self.repeated.add((kind, name))

    def note_length(self, length: int) -> None:
        if length > self.longest:
            self.longest = length


LISTS: Final = frozenset(
    (
        *("accept", "accept-charset", "accept-encoding", "accept-language", "accept-patch", "accept-ranges"),
        *("access-control-request-headers", "allow", "cache-control", "cdn-loop", "connection"),
        *("content-digest", "content-encoding", "content-language", "cookie", "forwarded", "if-match"),
        *("if-none-match", "link", "pragma", "prefer", "priority", "repr-digest", "signature"),
        *("sec-websocket-extensions", "sec-websocket-protocol", "signature-input", "te", "trailer"),
        *("upgrade", "vary", "via"),
        *("want-content-digest", "want-repr-digest", "x-forwarded-for"),
    )
)
"""Fields whose lines make one list (RFC 9110 §5.3). Of any other, recipients take one line or the other."""


def _headers(ctx: RequestContext, at: Moment) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in ctx.headers.items():
        name = name.lower()
        if name not in fields:
            fields[name] = value
            continue
        fields[name] = f"{fields[name]}{'; ' if name == 'cookie' else ', '}{value}"
        if name not in LISTS:
            at.note_repeated("headers", name)
    at.note_length(len(fields))
    return fields


def _header_values(ctx: RequestContext, at: Moment) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in ctx.headers.items():
        fields.setdefault(name.lower(), []).append(value)
    at.note_length(max(len(fields), *map(len, fields.values())) if fields else 0)
    return fields


def _query_pairs(ctx: RequestContext) -> list[tuple[str, str]]:
    """All of them: `server.max_target_bytes` bounds the query."""
    return parse_qsl(ctx.query, keep_blank_values=True, encoding="utf-8", errors="replace")


def _query_params(ctx: RequestContext, at: Moment) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _query_pairs(ctx):
        if found.setdefault(name, value) is not value:
            at.note_repeated("query_params", name)
    at.note_length(len(found))
    return found


def _query_values(ctx: RequestContext, at: Moment) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in _query_pairs(ctx):
        found.setdefault(name, []).append(value)
    at.note_length(max(len(found), *map(len, found.values())) if found else 0)
    return found


def _cookies(ctx: RequestContext, at: Moment) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in ctx.headers.get_all("cookie"):
        for part in field.split(";"):
            name, equals, value = part.strip().partition("=")
            if not equals:
                continue
            if name in found:
                at.note_repeated("cookies", name)
            else:
                found[name] = value.strip('"')
    at.note_length(len(found))
    return found


def _size(ctx: RequestContext, _at: Moment) -> int:
    value = ctx.headers.get("content-length")
    return (
        int(value)
        if value is not None and value.isdigit()
        else (-1 if "transfer-encoding" in ctx.headers else 0)
    )


def _of_consumer(attribute: str, missing: Any, convert: Callable[[Any], Any] = lambda value: value) -> Source:
    def read(ctx: RequestContext, at: Moment) -> Any:
        identity = getattr(ctx, "identity", None)
        if identity is None:
            return missing
        value = getattr(identity, attribute, None)
        if value is None:
            return missing
        converted = convert(value)
        if not isinstance(converted, str):
            at.note_length(_longest(converted))
        return converted

    return read


def _longest(value: Any) -> int:
    """Elements of the longest list or map in a value."""
    if isinstance(value, dict):
        return max([len(value), *map(_longest, value.values())])
    if isinstance(value, list):
        return max([len(value), *map(_longest, value)])
    return 0


def _plain(value: Any) -> dict[str, Any]:
    """A mapping with text keys, of values that CEL knows."""
    return {str(key): _known(item) for key, item in value.items()}


def _known(value: Any) -> Any:
    if value is None or isinstance(value, bool | float | str | bytes):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else float(value)
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, Iterable):
        return [_known(item) for item in value]
    return str(value)


def _count(kind: str, window: int) -> Source:
    def read(ctx: RequestContext, at: Moment) -> int:
        return 0 if at.counts is None else at.counts.count(kind, window, ctx, at.now_ns)

    return read


VARIABLES: Final[dict[str, tuple[str, Source, str]]] = {
    # name: (type, how it is read, what the documentation says)
    "request.method": ("string", lambda ctx, at: ctx.method, "the method, as received"),
    "request.path": ("string", lambda ctx, at: ctx.path, "the normalised path, without query"),
    "request.host": ("string", lambda ctx, at: ctx.host, "the host asked for, lower case, without port"),
    "request.scheme": ("string", lambda ctx, at: ctx.scheme, "`http` or `https`"),
    "request.query": ("string", lambda ctx, at: ctx.query, "the query as received, without `?`"),
    "request.query_params": (
        "map(string, string)",
        _query_params,
        "the query's parameters; a condition that reads one which is there twice fails",
    ),
    "request.query_values": (
        "map(string, dyn)",
        _query_values,
        "the list of all values of each of the query's parameters",
    ),
    "request.headers": (
        "map(string, string)",
        _headers,
        "fields by lower-case name; the lines of a list field (`accept`) are joined by `, `, and a condition "
        "that reads any other field which is there twice fails",
    ),
    "request.header_values": (
        "map(string, dyn)",
        _header_values,
        "the list of the values of all lines of each field",
    ),
    "request.cookies": (
        "map(string, string)",
        _cookies,
        "cookies by name; a condition that reads one which is there twice fails",
    ),
    "request.params": ("map(string, string)", lambda ctx, at: ctx.params, "parameters of the route's path"),
    "request.client_ip": ("string", lambda ctx, at: ctx.client_ip, "the client's address"),
    "request.peer_ip": ("string", lambda ctx, at: ctx.peer_ip, "the address of the TCP peer"),
    "request.size": ("int", _size, "`Content-Length`; 0 without a body, -1 when it is chunked"),
    "request.id": ("string", lambda ctx, at: ctx.request_id, "the request id"),
    "request.route": ("string", lambda ctx, at: ctx.route.name, "name of the route"),
    "consumer.name": ("string", _of_consumer("consumer", ""), "who it is; empty without a consumer"),
    "consumer.tier": ("string", _of_consumer("tier", ""), "the tier"),
    "consumer.method": (
        "string",
        _of_consumer("method", ""),
        "how it was authenticated: `api_key`, `jwt`, …",
    ),
    "consumer.key_id": ("string", _of_consumer("key_id", ""), "id of the API key or of the token's key"),
    "consumer.scopes": ("list(string)", _of_consumer("scopes", [], list), "scopes granted"),
    "consumer.roles": ("list(string)", _of_consumer("roles", [], list), "roles held"),
    "consumer.metadata": (
        "map(string, dyn)",
        _of_consumer("metadata", {}, _plain),
        "what the operator noted",
    ),
    "consumer.claims": ("map(string, dyn)", _of_consumer("claims", {}, _plain), "claims of the token"),
    "consumer.anonymous": (
        "bool",
        lambda ctx, at: getattr(getattr(ctx, "identity", None), "method", "anonymous") == "anonymous",
        "true when nobody proved who they are",
    ),
    "time.now": (
        "timestamp",
        lambda ctx, at: datetime.datetime.now(datetime.UTC),
        'the time; `time.now.getHours("Europe/Berlin")` for a zone',
    ),
    "time.hour": ("int", lambda ctx, at: at.utc.tm_hour, "0 to 23, UTC"),
    "time.minute": ("int", lambda ctx, at: at.utc.tm_min, "0 to 59"),
    "time.weekday": ("int", lambda ctx, at: at.utc.tm_wday + 1, "1 is Monday, 7 is Sunday (ISO 8601), UTC"),
    "time.day": ("int", lambda ctx, at: at.utc.tm_mday, "1 to 31, UTC"),
    "time.month": ("int", lambda ctx, at: at.utc.tm_mon, "1 to 12, UTC"),
    "time.year": ("int", lambda ctx, at: at.utc.tm_year, "UTC"),
    **{
        f"counters.{kind}_per_{name}": (
            "int",
            _count(kind, window),
            f"requests of this {said} in the last {name}, this one included, all workers",
        )
        for kind, said in (("consumer", "consumer"), ("client", "client address"), ("route", "route"))
        for name, window in (("minute", 60), ("hour", 3600))
    },
}

FUNCTIONS: Final = {
    "in_cidr(address, range)": (
        'true when the address lies in the range: `in_cidr(request.client_ip, "10.0.0.0/8")`'
    ),
}

_NAMES: Final = re.compile(r"\b(request|consumer|time|counters)\s*\.\s*([A-Za-z_]\w*)")
_LITERAL: Final = re.compile(r"""[rR]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""")
_AT: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): ([^\n]*)")


def is_available() -> bool:
    """True when the library of the `policy` extra can be imported."""
    try:
        _load()
    except ImportError:
        return False
    return True


def _load() -> tuple[Any, Any]:
    from cel_expr_python import cel  # heavy: only where there are policies
    from cel_expr_python.ext import ext_strings

    return cel, ext_strings


@lru_cache(maxsize=1024)
def _range(text: str) -> CidrSet:
    return CidrSet([text])


def _in_cidr(address: str, text: str) -> bool:
    if len(text) > 64:
        raise ValueError("in_cidr: no range has more than 64 characters")
    try:
        return address in _range(text)
    except ValueError as error:
        raise ValueError(f"in_cidr: {error}") from None


_TOKEN: Final = re.compile(
    r"""(?P<skip>//[^\n]*|[rRbB]{0,2}(?:\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}"""
    r"""|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))|(?P<name>[A-Za-z_]\w*)(?=\s*\()""",
    re.DOTALL,
)

_TEXT_FUNCTIONS: Final = ("matches", "replace", "split", "indexOf", "lastIndexOf", "reverse")
"""The functions of the language whose time or space is not bounded by the loop steps; `_Texts` has them."""


def bounded(text: str) -> str:
    """The expression with the gateway's own text functions in place of the library's."""

    def own(found: re.Match[str]) -> str:
        name = found["name"]
        return f"fastgate_{name}" if name in _TEXT_FUNCTIONS else found[0]

    return _TOKEN.sub(own, text)


class _Texts:
    """Text functions that are paid for. The results are those of CEL's `strings` extension."""

    def __init__(self, budget: Budget) -> None:
        self._spend = budget.spend
        self._budget = budget
        self.patterns = Patterns()
        self.most_parts = MOST_PARTS
        self.foreign: Any = None
        """Compiled `s.matches(p)`, for patterns that only RE2 takes."""

    def matches(self, text: str, pattern: str) -> bool:
        self._spend(CALL_NS)
        automaton: Automaton | None = None
        if len(pattern) <= MOST_PATTERN:
            automaton = self.patterns.get(pattern, self._budget)
        if automaton is not None:
            return automaton.search(text, self._budget)
        self._spend(FOREIGN_PATTERN_NS + 20 * len(text) + repeats_of(pattern) * 50_000)
        found = self.foreign.eval(data={"s": text, "p": pattern})
        value = found.value()
        if value is True or value is False:
            return bool(value)
        raise ValueError(str(value))

    def replace(self, text: str, old: str, new: str, most: int = -1) -> str:
        times = text.count(old) if most < 0 else min(text.count(old), most)
        size = len(text) + times * (len(new) - len(old))
        self._spend(CALL_NS + 10 * (len(text) + size))
        if size > MOST_TEXT:
            self._budget.is_exhausted = True
            raise Exhausted(f"replace: more than {MOST_TEXT} characters")
        return text.replace(old, new, most if most >= 0 else -1)

    def split(self, text: str, by: str, most: int = -1) -> list[str]:
        parts = (len(text) if by == "" else text.count(by) + 1) if most < 0 else most
        self._spend(CALL_NS + 2 * len(text) + 800 * min(parts, self.most_parts))
        if min(parts, len(text) + 1) > self.most_parts:
            self._budget.is_exhausted = True
            raise Exhausted(f"split: more than {self.most_parts} parts")
        if most == 0:
            return []
        if by == "" and text:
            letters = list(text)
            return letters if most < 0 or len(letters) <= most else [*letters[: most - 1], text[most - 1 :]]
        return text.split(by, most - 1 if most > 0 else -1) if text else [""]

    def index_of(self, text: str, part: str, start: int = 0) -> int:
        self._spend(CALL_NS + len(text))
        if not 0 <= start <= len(text):
            raise ValueError(f"indexOf: {start} is out of range")
        return text.find(part, start)

    def last_index_of(self, text: str, part: str, start: int | None = None) -> int:
        self._spend(CALL_NS + len(text))
        if start is None:
            return text.rfind(part)
        if not 0 <= start <= len(text):
            raise ValueError(f"lastIndexOf: {start} is out of range")
        return text.rfind(part, 0, start + len(part))

    def reverse(self, text: str) -> str:
        self._spend(CALL_NS + 10 * len(text))
        return text[::-1]


_REPEAT: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def repeats_of(pattern: str) -> int:
    """About how many copies of parts of it a pattern is made of."""
    copies = 1
    for low, high in _REPEAT.findall(pattern):
        copies *= max(int(low[:4]), int((high or "0")[:4]), 1)
    return min(copies, 1_000_000)


class Language:
    """Compiles expressions. One per process is enough; of a request it holds the budget."""

    def __init__(self) -> None:
        cel, ext_strings = _load()
        kinds = cel.Type
        types = {
            "string": kinds.STRING,
            "int": kinds.INT,
            "bool": kinds.BOOL,
            "timestamp": kinds.TIMESTAMP,
            "list(string)": kinds.List(kinds.STRING),
            "map(string, string)": kinds.Map(kinds.STRING, kinds.STRING),
            "map(string, dyn)": kinds.Map(kinds.STRING, kinds.DYN),
        }
        self.budget = Budget(BUDGET_NS)
        self.texts = texts = _Texts(self.budget)
        text, number, many = kinds.STRING, kinds.INT, kinds.List(kinds.STRING)

        def own(name: str, gives: Any, takes: list[Any], act: Any, is_member: bool = True) -> Any:
            words = "_".join(kind.name().lower() for kind in takes)
            return cel.Overload(f"fastgate_{name}_{is_member}_{words}", gives, takes, is_member, act)

        overloads = {
            "matches": [
                own("matches", kinds.BOOL, [text, text], texts.matches),
                own("matches", kinds.BOOL, [text, text], texts.matches, False),
            ],
            "replace": [
                own("replace", text, [text, text, text], texts.replace),
                own("replace", text, [text, text, text, number], texts.replace),
            ],
            "split": [
                own("split", many, [text, text], texts.split),
                own("split", many, [text, text, number], texts.split),
            ],
            "indexOf": [
                own("indexOf", number, [text, text], texts.index_of),
                own("indexOf", number, [text, text, number], texts.index_of),
            ],
            "lastIndexOf": [
                own("lastIndexOf", number, [text, text], texts.last_index_of),
                own("lastIndexOf", number, [text, text, number], texts.last_index_of),
            ],
            "reverse": [own("reverse", text, [text], texts.reverse)],
        }
        texts.foreign = cel.NewEnv(variables={"s": text, "p": text}).compile("s.matches(p)")
        self._bool, self._dyn = kinds.BOOL, kinds.DYN
        self.error = kinds.ERROR
        overload = cel.Overload(
            "in_cidr_string_string", kinds.BOOL, [kinds.STRING, kinds.STRING], False, _in_cidr
        )
        self.env = cel.NewEnv(
            variables={name: types[kind] for name, (kind, _read, _said) in VARIABLES.items()},
            extensions=[ext_strings.ExtStrings()],
            functions=[
                cel.FunctionDecl("in_cidr", [overload]),
                *(cel.FunctionDecl(f"fastgate_{name}", found) for name, found in overloads.items()),
            ],
        )

    def compile(self, text: str) -> Any:
        """The compiled condition. ExpressionError: syntax, an unknown name, or something that is not a
        condition."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ExpressionError("half of a surrogate pair", 1, error.start + 1) from None
        try:
            compiled = self.env.compile(text)
        except RuntimeError as error:
            raise _expression_error(str(error)) from None
        kind = compiled.return_type()
        if kind not in (self._bool, self._dyn):
            raise ExpressionError(f"a condition is true or false, and this is {kind.name().lower()}")
        self._check_patterns(text)
        return self.env.compile(bounded(text))

    def _check_patterns(self, text: str) -> None:
        """A regular expression is compiled when it is used: one that cannot be is better found now."""
        for found in re.finditer(
            rf"\bmatches\s*\(\s*(?:[\w.]+\s*,\s*)?({_LITERAL.pattern})\s*\)", text, re.DOTALL
        ):
            pattern = self.env.compile(found[1]).eval(data={}).value()
            if len(pattern) <= MOST_PATTERN:
                self.texts.patterns.keep(pattern)
            self.budget.reset(BUDGET_NS)
            tried = self.env.compile(f'"".matches({found[1]})').eval(data={})
            if tried.type() == self.error:
                line, column = (
                    text.count("\n", 0, found.start(1)) + 1,
                    found.start(1) - text.rfind("\n", 0, found.start(1)),
                )
                problem = str(tried.value()).removeprefix("INVALID_ARGUMENT: ")
                raise ExpressionError(problem, line, column)
            self._check_cost(pattern, text, found.start(1))

    def _check_cost(self, pattern: str, text: str, at: int) -> None:
        """A pattern that costs more than all conditions of a request may could never be used."""
        cost_ns = FOREIGN_PATTERN_NS + repeats_of(pattern) * 50_000
        if cost_ns > BUDGET_NS // 2:
            try:
                if len(pattern) <= MOST_PATTERN:
                    Automaton(pattern)
                    return
            except Unsupported:
                pass
            column = at - text.rfind("\n", 0, at)
            raise ExpressionError("a pattern with too many repetitions", text.count("\n", 0, at) + 1, column)

    @staticmethod
    def names(text: str) -> frozenset[str]:
        """The variables that an expression names. One in a string or a comment counts too: building it for
        nothing costs little, and not building one that is asked for would be an error.
        """
        found = {*_NAMES.findall(text), *_NAMES.findall(re.sub(r"//[^\n]*", "", text))}
        return frozenset(f"{a}.{b}" for a, b in found) & VARIABLES.keys()


def _expression_error(message: str) -> ExpressionError:
    found = _AT.search(message)
    if found is None:
        return ExpressionError(message.removesuffix("]").rpartition(" [")[0] or message)
    problem = found[3].removesuffix(" (in container '')").removesuffix(" [INVALID_ARGUMENT]")
    unknown = re.fullmatch(r"undeclared reference to '(.*)'", problem)
    if unknown is not None:
        hint = _nearest(unknown[1])
        problem = f"there is no {unknown[1]}" + (f"; did you mean {hint}?" if hint else "")
    return ExpressionError(problem, max(int(found[1]), 0), max(int(found[2]), 0))


def _nearest(name: str) -> str:
    import difflib

    known = [*VARIABLES, "in_cidr"]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else ""


# ---- what is wrong with a policy


def check_policy(
    policy: PolicyConfig,
    report: Callable[[str, str, str, str], None],
    upstreams: Iterable[str],
    language: Language | None,
) -> None:
    """Reports (key, found, expected, hint) for everything that is wrong with one policy. `language` is None
    when the extra is not installed.
    """
    if language is None:
        report("when", "a condition in CEL", "", f"the policy engine is an extra: {INSTALL}")
    else:
        try:
            language.compile(policy.when)
        except ExpressionError as error:
            report("when", "an expression that does not compile", "", str(error))
    needs = {"tag": "tags", "route": "upstream", "limit": "limit"}
    for action, key in needs.items():
        given = bool(getattr(policy, key))
        if policy.action == action and not given:
            report(key, "missing key", f"what a policy with action {action} needs", "")
        elif policy.action != action and given:
            report(key, "a setting without effect", "", f"it is for policies with action {action}")
    if policy.action != "deny":
        for key, unset in (("status", 403), ("message", "")):
            if getattr(policy, key) != unset:
                report(key, "a setting without effect", "", "it is for policies with action deny")
    if any(ord(letter) < 32 for letter in policy.message):
        report("message", "a control character", "one line of text", "")
    if policy.upstream is not None and policy.upstream not in upstreams:
        report("upstream", f'"{policy.upstream}"', "the name of an upstream", "")


# ---- violations


class Violation(msgspec.Struct, frozen=True, array_like=True):
    """One request that a policy refused, or would have."""

    realtime_ns: int
    policy: str
    action: str  # deny, limit, or error
    enforced: bool
    route: str
    consumer: str
    client_ip: str
    method: str
    path: str
    request_id: str
    worker: int
    detail: str = ""


class ViolationLog:
    """The newest violations of all workers; the controller reads what they write."""

    RECORD_BYTES: ClassVar[int] = 488
    CAPACITY: ClassVar[int] = 2048

    def __init__(self, ring: RecordRing) -> None:
        self._ring = ring
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Violation).decode

    def note(self, violation: Violation) -> None:
        record = self._encode(violation)
        room = self._ring.record_bytes
        if len(record) > room:
            short = msgspec.structs.replace(
                violation,
                path=_cut(violation.path, 120),
                route=_cut(violation.route, 60),
                consumer=_cut(violation.consumer, 60),
                request_id=_cut(violation.request_id, 36),
                method=_cut(violation.method, 16),
                detail=_cut(violation.detail, 60),
            )
            record = self._encode(short)
            if len(record) > room:
                record = self._encode(
                    msgspec.structs.replace(
                        short, path="", detail="", route="", consumer=_cut(short.consumer, 20)
                    )
                )
        self._ring.append(record)

    @property
    def total(self) -> int:
        return self._ring.appended

    def recent(self, most: int = 100) -> list[tuple[int, Violation]]:
        """The newest, newest first, with their numbers."""
        found = []
        for number, record in self._ring.recent(most):
            try:
                found.append((number, self._decode(record)))
            except msgspec.DecodeError:  # written by another version before a restart of the controller
                continue
        return found


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# ---- counts


class Counts:
    """Requests of a consumer, a client address or a route in the last minute or hour, over all workers."""

    def __init__(self, table: LimiterTable | None) -> None:
        self._table = table
        self._windows: dict[tuple[str, int], KeyedLimiter] = {}

    def count(self, kind: str, window: int, ctx: RequestContext, now_ns: int) -> int:
        """Counts this request and says how many there are."""
        limiter = self._windows.get((kind, window))
        if limiter is None:
            limiter = self._windows[kind, window] = keyed(
                SlidingWindow(COUNTED, window), f"policy count {kind} {window}", self._table
            )
        decision = limiter.take(key_of(kind, ctx), 1, now_ns)
        return COUNTED - decision.remaining


def keyed(limit: SlidingWindow, scope: str, table: LimiterTable | None) -> KeyedLimiter:
    """A limiter in the host's table, or in one of its own where there is none."""
    if table is None:
        return KeyedLimiter(limit, capacity=LIMIT_KEYS, scope=scope, when_full="evict")
    return KeyedLimiter(limit, table=table, scope=scope, when_full="evict")


def key_of(by: str, ctx: RequestContext) -> str:
    if by == "route":
        name: str = ctx.route.name
        return name
    if by == "all":
        return ""
    if by == "consumer":
        identity = getattr(ctx, "identity", None)
        if identity is not None and identity.consumer:
            return f"c:{identity.consumer}"
    return f"a:{ctx.client_ip}"


# ---- rules


class Failure(str):
    """Why a condition gave no answer. is_closed: a client can cause it, so `on_error` does not matter."""

    is_closed: bool

    def __new__(cls, text: str, is_closed: bool = False) -> Failure:
        made = super().__new__(cls, text)
        made.is_closed = is_closed
        return made


_MAPS: Final = re.compile(r"\brequest\s*\.\s*(headers|query_params|cookies)\b")
_READS: Final = re.compile(
    r"""\s*\[\s*[rR]?(?:'([^'\\\n]*)'|"([^"\\\n]*)")\s*\]|\s*\.\s*([A-Za-z_]\w*)\b(?!\s*\()"""
)
_COPIES: Final = re.compile(r"\.\s*(?:map|filter)\s*\(")


def reads_of(text: str) -> dict[str, frozenset[str] | None]:
    """The keys that a condition reads of headers, query_params and cookies; None for a map: any of them.
    Asking whether a key is there (`in`) reads none.
    """
    found: dict[str, set[str] | None] = {}
    for place in _MAPS.finditer(text):
        kind = place[1]
        read = _READS.match(text, place.end())
        if read is None:
            if not re.search(r"\bin\s*\Z", text[: place.start()]):
                found[kind] = None
            continue
        names = found.setdefault(kind, set())
        if names is not None:
            names.add(next(name for name in read.groups() if name is not None))
    return {kind: None if names is None else frozenset(names) for kind, names in found.items()}


class Rule:
    """One policy, compiled."""

    __slots__ = (
        "_count_error",
        "_count_match",
        "action",
        "config",
        "copies",
        "enforce",
        "limiter",
        "name",
        "program",
        "reads",
        "reason",
    )

    def __init__(
        self,
        config: PolicyConfig,
        program: Any,
        *,
        counter: Callable[..., Any] | None = None,
        table: LimiterTable | None = None,
    ) -> None:
        self.config = config
        self.name = config.name
        self.action = config.action
        self.enforce = config.enforce
        self.program = program
        self.reads = reads_of(config.when)
        self.copies = _COPIES.search(config.when) is not None
        denied = REASONS["policy_denied"]
        self.reason = Reason(
            denied.index, denied.label, config.status, config.message or denied.text, CLIENT, False
        )
        self.limiter: KeyedLimiter | None = None
        if config.limit is not None:
            window = SlidingWindow(config.limit.requests, config.limit.per_ns / 1e9)
            scope = f"policy {config.name} {config.limit.requests} in {config.limit.per_ns}"
            self.limiter = keyed(window, scope, table)
        self._count_match = self._count_error = None
        if counter is not None:
            outcome = "matched" if config.enforce else "shadow"
            labels = {"policy": config.name, "action": config.action}
            self._count_match = counter("fastgate_policy_total", **labels, outcome=outcome)
            self._count_error = counter("fastgate_policy_total", **labels, outcome="error")

    def undecidable(self, moment: Moment) -> str:
        """Why the condition cannot be decided on this request; "" when it can."""
        for kind, name in moment.repeated or ():
            read = self.reads.get(kind, frozenset())
            if read is None or name in read:
                return f"{kind}: {name[:60]!r} is there more than once"
        if self.copies and moment.longest > MOST_COPIED:
            return f"a list or map with more than {MOST_COPIED} elements"
        return ""

    def matched(self) -> None:
        if self._count_match is not None:
            self._count_match.add()

    def failed(self) -> None:
        if self._count_error is not None:
            self._count_error.add()


class RuleSet:
    """The rules of one route in the order they are asked."""

    def __init__(self, language: Language | None, rules: Sequence[Rule]) -> None:
        # sorted() is stable: equal priorities keep the order of the file
        self.rules = tuple(sorted(rules, key=lambda rule: -rule.config.priority))
        names = sorted({name for rule in self.rules for name in Language.names(rule.config.when)})
        self.names = tuple(names)
        self.judges_path = any(
            rule.enforce and "request.path" in Language.names(rule.config.when) for rule in self.rules
        )
        self._sources = tuple((name, VARIABLES[name][1]) for name in names)
        self._activation = language.env.Activation if language is not None else None
        self._error = language.error if language is not None else None
        self._joined = None
        self._language = language
        self._left_ns = {True: BUDGET_NS, False: BUDGET_NS}
        self._most_parts = MOST_COPIED if any(rule.copies for rule in self.rules) else MOST_PARTS
        if language is not None and len(self.rules) > 1:
            whole = " || ".join(f"(\n{rule.config.when}\n)" for rule in self.rules)
            try:
                joined = language.env.compile(bounded(whole))
            except RuntimeError:  # together they are beyond a bound of the library, one by one they are not
                joined = None
            self._joined = joined

    def __len__(self) -> int:
        return len(self.rules)

    def activation(self, ctx: RequestContext, moment: Moment) -> Any:
        """The variables that any of the rules names, built once for all of them."""
        assert self._activation is not None
        return self._activation({name: source(ctx, moment) for name, source in self._sources})

    def matches_none(self, activation: Any, moment: Moment) -> bool:
        """True when certainly no condition holds and none fails."""
        assert self._language is not None
        self._left_ns[True] = self._left_ns[False] = BUDGET_NS
        if self._joined is None or moment.repeated is not None or moment.longest > MOST_COPIED:
            return False
        self._language.budget.reset(BUDGET_NS)
        self._language.texts.most_parts = self._most_parts
        try:
            return self._joined.eval(activation).value() is False
        except RuntimeError:
            return False

    def evaluate(self, rule: Rule, activation: Any, moment: Moment) -> bool | Failure:
        """What the condition says, or why it says nothing. Rules in shadow mode have a budget of their own:
        what they spend is not missing to those that are enforced.
        """
        assert self._language is not None
        why = rule.undecidable(moment)
        if why:
            return Failure(why, True)
        budget = self._language.budget
        budget.reset(self._left_ns[rule.enforce])
        self._language.texts.most_parts = MOST_COPIED if rule.copies else MOST_PARTS
        try:
            found = rule.program.eval(activation)
            value = found.value()
        except RuntimeError as error:  # beyond the loop budget
            return Failure(str(error), True)
        finally:
            self._left_ns[rule.enforce] = budget.left_ns
        if value is True or value is False:
            return bool(value)
        if found.type() == self._error:
            return Failure(str(value), budget.is_exhausted)
        return Failure(f"a condition is true or false, and this one gave {type(value).__name__}")


# ---- at run time


class Policies:
    """What the policy gates of one worker share: the language, the root's and the run time's policies,
    compiled."""

    DOCUMENT: ClassVar[bytes] = document_digest("policies")

    def __init__(
        self,
        root: Sequence[PolicyConfig],
        *,
        counter: Callable[..., Any] | None = None,
        table: LimiterTable | None = None,
        violations: RecordRing | None = None,
        directory: Directory | None = None,
        waits: bool = False,
        worker: int = 0,
    ) -> None:
        """`waits`: there is a store whose policies the controller has yet to publish."""
        self._waits = waits
        self._root = tuple(root)
        self._counter, self._table = counter, table
        self.directory = directory
        self.worker = worker
        self.counts = Counts(table)
        self.violations = ViolationLog(violations) if violations is not None else None
        self._language: Language | None = None
        self._programs: OrderedDict[str, Any] = OrderedDict()
        self._sets: dict[tuple[PolicyConfig, ...], RuleSet] = {}
        self._document: tuple[int, int] | None = None  # index and version of the document read last
        self._runtime: tuple[PolicyConfig, ...] = ()
        self.take_up()

    def is_loaded(self) -> bool:
        """False while policies set at run time may still be missing."""
        if self._waits and self.directory is not None and self.directory.loaded:
            self._waits = False
        return not self._waits

    def take_up(self) -> None:
        """Reads the policies set at run time, if they are other ones than before."""
        if self.directory is None:
            return
        found = self.directory.get(self.DOCUMENT)
        place = (found[0], found[1]) if found is not None else None
        if place == self._document:
            return
        policies: tuple[PolicyConfig, ...] = ()
        if found is not None:
            try:
                policies = msgspec.msgpack.decode(found[2], type=tuple[PolicyConfig, ...])
            except msgspec.DecodeError as error:  # of another version of fastgate: the root's stay in force
                log.error("the policies set at run time cannot be read: %s", error)
        self._document, self._runtime = place, policies
        self._sets.clear()

    def of_route(self, name: str, own: Sequence[str | PolicyConfig]) -> RuleSet:
        """The rules of this route. Those set at run time take the place of the root's of the same name."""
        replaced = {policy.name for policy in self._runtime}
        shared = [policy for policy in self._root if policy.name not in replaced] + list(self._runtime)
        named = {item for item in own if isinstance(item, str)}
        chosen = [
            policy
            for policy in shared
            if policy.name in named or any(wildcard_matches(pattern, name) for pattern in policy.routes)
        ]
        chosen += [item for item in own if isinstance(item, PolicyConfig)]
        return self._compiled(tuple(chosen))

    def _compiled(self, policies: tuple[PolicyConfig, ...]) -> RuleSet:
        rules = self._sets.get(policies)
        if rules is None:
            if not policies:
                rules = RuleSet(None, ())
            else:
                self._language = self._language or Language()
                rules = RuleSet(self._language, [self._rule(policy) for policy in policies])
            self._sets[policies] = rules
        return rules

    def _rule(self, policy: PolicyConfig) -> Rule:
        assert self._language is not None
        program = self._programs.get(policy.when)
        if program is None:
            program = self._programs[policy.when] = self._language.compile(policy.when)
            if len(self._programs) > MOST_PROGRAMS:  # of policies set at run time, again and again
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(policy.when)
        return Rule(policy, program, counter=self._counter, table=self._table)


class PolicyGate(WatchingGate):
    """Asks the rules of one route."""

    def __init__(self, policies: Policies, route: str, own: Sequence[str | PolicyConfig]) -> None:
        super().__init__(policies.directory)
        self.name = "policies"
        self._policies = policies
        self._route = route
        self._own = tuple(own)
        self._rules = RuleSet(None, ())
        self._late = False
        self.refresh()

    def refresh(self) -> None:
        self._policies.take_up()
        self._rules = self._policies.of_route(self._route, self._own)
        self._late = not self._policies.is_loaded()
        self.idle = not self._rules and not self._late

    def judge(self, ctx: RequestContext) -> int:
        if not self._policies.is_loaded():
            return SUSPEND
        if self._late:
            self.refresh()
        rules = self._rules
        if not rules:
            return CONTINUE
        if rules.judges_path and ctx.other_paths(ctx.route.allow_encoded_slashes):
            # The condition would be asked about one reading of the path, and the upstream about another.
            return ctx.refuse(REASONS["ambiguous_path"])
        moment = Moment(ctx.now_ns, self._policies.counts)
        activation = rules.activation(ctx, moment)
        if rules.matches_none(activation, moment):
            return CONTINUE
        for rule in rules.rules:
            found = rules.evaluate(rule, activation, moment)
            if found is False:
                continue
            if isinstance(found, Failure):
                rule.failed()
                is_closed = found.is_closed or rule.config.on_error == "deny"
                if is_closed and self._refuses(rule, ctx, "error", str(found)):
                    return ctx.refuse(rule.reason)
                continue
            action = rule.action
            if action == "limit":
                answer = self._limited(rule, ctx)
                if answer is not None:
                    return answer
                continue
            rule.matched()
            if action == "deny":
                if self._refuses(rule, ctx, "deny", ""):
                    return ctx.refuse(rule.reason)
            elif action == "allow":
                if rule.enforce:
                    return CONTINUE
            elif action == "tag":
                if rule.enforce:
                    tags = ctx.tags or []
                    ctx.tags = tags + [tag for tag in rule.config.tags if tag not in tags]
            elif rule.enforce and ctx.upstream_override is None:
                ctx.upstream_override = rule.config.upstream
        return CONTINUE

    async def request(self, ctx: RequestContext) -> int:
        """Waits, in the first moments of a gateway, for the store: what it holds may refuse this request."""
        until = time.monotonic() + LOAD_S
        while not self._policies.is_loaded():
            if time.monotonic() > until:
                return ctx.refuse(REASONS["policies_unavailable"])
            await asyncio.sleep(LOAD_POLL_S)
        return self.judge(ctx)

    def _limited(self, rule: Rule, ctx: RequestContext) -> int | None:
        limit, limiter = rule.config.limit, rule.limiter
        assert limit is not None and limiter is not None
        decision = limiter.take(key_of(limit.by, ctx), 1, ctx.now_ns)
        if decision.allowed:
            return None
        rule.matched()
        if not self._refuses(rule, ctx, "limit", f"{limit.requests} per {duration_text(limit.per_ns)}"):
            return None
        wait_s = max(1, -(-decision.retry_after_ns // SECOND)) if decision.retry_after_ns >= 0 else 1
        return ctx.refuse(
            REASONS["rate_limited"],
            {"limit_type": rule.name, "retry_after": wait_s},
            [("Retry-After", str(wait_s))],
        )

    def _refuses(self, rule: Rule, ctx: RequestContext, action: str, detail: str) -> bool:
        """Notes the violation; True when the rule is enforced."""
        if self._policies.violations is not None:
            identity = ctx.identity
            self._policies.violations.note(
                Violation(
                    realtime_ns=time.time_ns(),
                    policy=rule.name,
                    action=action,
                    enforced=rule.enforce,
                    route=self._route,
                    consumer=identity.consumer if identity is not None else "",
                    client_ip=ctx.client_ip,
                    method=ctx.method,
                    path=ctx.path,
                    request_id=ctx.request_id,
                    worker=self._policies.worker,
                    detail=detail,
                )
            )
        return rule.enforce


def _has_store(config: Any) -> bool:
    """True when a controller will publish what was set at run time before."""
    from fastgate.state.store import default_path  # brings sqlite along: once per worker, when it starts

    return Path(config.store.path or default_path()).exists()


def build(own: Sequence[str | PolicyConfig], env: FeatureEnv) -> PolicyGate | None:
    """The gate of a route; None when nothing can ever concern it."""
    memory = env.around.memory
    directory = memory.directory if env.config.admin.listen != "off" else None
    root: tuple[PolicyConfig, ...] = env.config.policies
    if not own and not root and directory is None:
        return None
    policies = env.service(
        "policies",
        root,
        lambda: Policies(
            root,
            counter=memory.metrics.counter,
            table=memory.limits,
            violations=memory.violations,
            directory=directory,
            waits=directory is not None and not directory.loaded and _has_store(env.config),
            worker=env.around.slot,
        ),
    )
    return PolicyGate(policies, env.route.name, own)


@lru_cache(maxsize=1)
def language() -> Language | None:
    """The language for checks of the config; None when the extra is not installed."""
    return Language() if is_available() else None
