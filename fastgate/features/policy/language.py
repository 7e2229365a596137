"""CEL, the language of conditions: compilation, resource bounds, and error positions.

The library is cel-expr-python, Google's C++ evaluator. Every variable is declared with its type and its full
dotted name (`request.path`), so a misspelt name or a wrong type is a config error instead of a request error,
and only the variables that an expression names are built. The library bounds evaluation in loop steps (10
000), nesting (32) and characters (100 000), but not in time: `matches` compiles its pattern at every call,
and the other text functions copy their input at every call. The gateway therefore replaces those functions
(`_TEXT_FUNCTIONS`, and in loops `_LOOPED_FUNCTIONS`): patterns are compiled once, and each call is charged to
the budget of its request. Choice of the library: docs/dependencies.md.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from fastgate._core.http.automaton import CALL_NS, Automaton, Budget, Exhausted, Patterns, Unsupported
from fastgate._core.http.cidr import CidrSet
from fastgate.features.policy.variables import VARIABLES

__all__ = [
    "BUDGET_NS",
    "FUNCTIONS",
    "INSTALL",
    "MOST_COPIED",
    "MOST_PARTS",
    "ExpressionError",
    "Language",
    "bounded",
    "is_available",
    "language",
]

INSTALL: Final = "pip install 'fastgate[policy]'"

BUDGET_NS: Final = 20_000_000
"""Time that text functions may take in the conditions of one request; usually they take microseconds."""

MOST_PARTS: Final = 1024
MOST_COPIED: Final = 256
"""Elements of a list. `map` and `filter` copy the list at every step, so their time is quadratic."""

MOST_TEXT: Final = 1 << 20
"""Bytes that `replace` may produce."""

MOST_PATTERN: Final = 1000
"""Characters of a pattern that is compiled once."""

FOREIGN_PATTERN_NS: Final = 500_000
"""Cost of a pattern that only RE2 accepts, which is compiled at every call."""


class ExpressionError(ValueError):
    """An expression that does not compile: the error and its position (line and column from 1, 0 if
    unknown)."""

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        place = (
            f"line {line}, character {column}: " if line > 1 else f"character {column}: " if column else ""
        )
        super().__init__(place + problem)
        self.problem, self.line, self.column = problem, line, column


FUNCTIONS: Final = {
    "in_cidr(address, range)": (
        'true if the address is in the range: `in_cidr(request.client_ip, "10.0.0.0/8")`'
    ),
}

_NAMES: Final = re.compile(r"\b(request|consumer|time|counters)\s*\.\s*([A-Za-z_]\w*)")
_LITERAL: Final = re.compile(r"""[rR]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""")
_AT: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): ([^\n]*)")


def is_available() -> bool:
    """True if the library of the `policy` extra can be imported."""
    try:
        _load()
    except ImportError:
        return False
    return True


def _load() -> tuple[Any, Any]:
    from cel_expr_python import cel  # slow to import: only if there are policies
    from cel_expr_python.ext import ext_strings

    return cel, ext_strings


@lru_cache(maxsize=1024)
def _range(text: str) -> CidrSet:
    return CidrSet([text])


def _in_cidr(address: str, text: str) -> bool:
    if len(text) > 64:
        raise ValueError("in_cidr: a range has at most 64 characters")
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
"""Functions of the language whose time or space is not bounded by the loop steps. `_Texts` replaces them."""


_LOOPED_FUNCTIONS: Final = (
    *("contains", "startsWith", "endsWith", "lowerAscii", "upperAscii", "trim", "charAt", "substring"),
    "join",
)
"""Functions that read a text once. One call is cheap and the library's own is the fastest; thousands of calls
in nested loops are not.
"""

_LOOPS: Final = frozenset(("all", "exists", "exists_one", "map", "filter"))


def bounded(text: str) -> str:
    """The expression with the gateway's text functions in place of the library's."""
    loops = any(found["name"] in _LOOPS for found in _TOKEN.finditer(text))
    names = (*_TEXT_FUNCTIONS, *_LOOPED_FUNCTIONS) if loops else _TEXT_FUNCTIONS

    def own(found: re.Match[str]) -> str:
        name = found["name"]
        return f"fastgate_{name}" if name in names else found[0]

    return _TOKEN.sub(own, text)


_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_UPPER: Final = {lower: lower - 32 for lower in range(ord("a"), ord("z") + 1)}
_SPACE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space."""


class _Texts:
    """Text functions that charge their cost to a budget. Results equal those of CEL's `strings` extension."""

    def __init__(self, budget: Budget) -> None:
        self._spend = budget.spend
        self._budget = budget
        self.patterns = Patterns()
        self.most_parts = MOST_PARTS
        self.foreign: Any = None
        """Compiled `s.matches(p)`, for patterns that only RE2 accepts."""

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

    def contains(self, text: str, part: str) -> bool:
        self._spend(CALL_NS + len(text))
        return part in text

    def starts_with(self, text: str, part: str) -> bool:
        self._spend(CALL_NS + len(text))  # the call copies the texts
        return text.startswith(part)

    def ends_with(self, text: str, part: str) -> bool:
        self._spend(CALL_NS + len(text))
        return text.endswith(part)

    def lower(self, text: str) -> str:
        self._spend(CALL_NS + 20 * len(text))
        return text.translate(_LOWER)

    def upper(self, text: str) -> str:
        self._spend(CALL_NS + 20 * len(text))
        return text.translate(_UPPER)

    def trim(self, text: str) -> str:
        self._spend(CALL_NS + 2 * len(text))
        return text.strip(_SPACE)

    def character(self, text: str, at: int) -> str:
        self._spend(CALL_NS + len(text))
        if not 0 <= at <= len(text):
            raise ValueError(f"charAt: {at} is out of range")
        return text[at : at + 1]

    def substring(self, text: str, start: int, end: int | None = None) -> str:
        self._spend(CALL_NS + len(text))
        end = len(text) if end is None else end
        if not 0 <= start <= end <= len(text):
            raise ValueError(f"substring: {start} to {end} is out of range")
        return text[start:end]

    def join(self, parts: list[str], by: str = "") -> str:
        size = sum(map(len, parts)) + len(by) * len(parts)
        self._spend(CALL_NS + 400 * len(parts) + 2 * size)
        if size > MOST_TEXT:
            self._budget.is_exhausted = True
            raise Exhausted(f"join: more than {MOST_TEXT} characters")
        return by.join(parts)


_REPEAT: Final = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def repeats_of(pattern: str) -> int:
    """Upper bound on the copies of its parts that the repetitions of a pattern expand to."""
    copies = 1
    for low, high in _REPEAT.findall(pattern):
        copies *= max(int(low[:4]), int((high or "0")[:4]), 1)
    return min(copies, 1_000_000)


class Language:
    """Compiles expressions. One instance per process suffices; its only per-request state is the budget."""

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
            "contains": [own("contains", kinds.BOOL, [text, text], texts.contains)],
            "startsWith": [own("startsWith", kinds.BOOL, [text, text], texts.starts_with)],
            "endsWith": [own("endsWith", kinds.BOOL, [text, text], texts.ends_with)],
            "lowerAscii": [own("lowerAscii", text, [text], texts.lower)],
            "upperAscii": [own("upperAscii", text, [text], texts.upper)],
            "trim": [own("trim", text, [text], texts.trim)],
            "charAt": [own("charAt", text, [text, number], texts.character)],
            "substring": [
                own("substring", text, [text, number], texts.substring),
                own("substring", text, [text, number, number], texts.substring),
            ],
            "join": [
                own("join", text, [many], texts.join),
                own("join", text, [many, text], texts.join),
            ],
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
        """The compiled condition. Raises ExpressionError: a syntax error, an unknown name, or a result other
        than bool."""
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
            raise ExpressionError(f"a condition must be a bool, this one is {kind.name().lower()}")
        self._check_patterns(text)
        return self.env.compile(bounded(text))

    def _check_patterns(self, text: str) -> None:
        """Rejects invalid regular expressions at config time; CEL compiles them only when they are used."""
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
        """Rejects a pattern that costs more than the budget of a request: it could never be evaluated."""
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
        """The variables that an expression names. Names in strings and comments are included: building an
        unused variable is cheap, while a missing one would be an error."""
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
        problem = f"unknown name {unknown[1]}" + (f"; did you mean {hint}?" if hint else "")
    return ExpressionError(problem, max(int(found[1]), 0), max(int(found[2]), 0))


def _nearest(name: str) -> str:
    import difflib

    known = [*VARIABLES, "in_cidr"]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else ""


@lru_cache(maxsize=1)
def language() -> Language | None:
    """The language for config checks, or None if the extra is not installed."""
    return Language() if is_available() else None
