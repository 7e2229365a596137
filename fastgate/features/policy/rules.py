"""Compiled policies: a `Rule` is one policy, a `RuleSet` the policies of one route in evaluation order.

An undecidable condition fails closed, whatever its `on_error`: if a bound was reached, or if a value that it
reads occurs more than once, because the upstream might use another occurrence.

The conditions of a set are compiled twice: individually, and all joined by `||`. Most requests match no
condition, which a single call of the joined expression proves. On a match or an error, the individual
conditions are evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastgate._core.limits.keyed import KeyedLimiter
from fastgate._core.limits.limits import SlidingWindow
from fastgate._core.pipeline.context import CLIENT, RequestContext
from fastgate._core.shm.runtime import RuntimeValue
from fastgate._core.shm.table import LimiterTable
from fastgate.errors import REASONS, Reason
from fastgate.features.policy.counts import keyed
from fastgate.features.policy.language import BUDGET_NS, MOST_COPIED, MOST_PARTS, Language, bounded
from fastgate.features.policy.settings import PolicyConfig
from fastgate.features.policy.variables import VARIABLES, Moment

__all__ = ["Failure", "Rule", "RuleSet"]


class Failure(str):
    """The cause of an undecided condition. is_closed: a client can provoke it, so `on_error` does not
    apply."""

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
    """The keys of headers, query_params and cookies that a condition reads; None for a map: any key. Testing
    for presence (`in`) is not a read."""
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
        "switch",
    )

    def __init__(
        self,
        config: PolicyConfig,
        program: Any,
        *,
        counter: Callable[..., Any] | None = None,
        table: LimiterTable | None = None,
        switch: RuntimeValue | None = None,
    ) -> None:
        """`switch`: 0 while the policy is switched off at run time."""
        self.config = config
        self.switch = switch
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

    def is_off(self) -> bool:
        """True while the policy is switched off at run time."""
        return self.switch is not None and not self.switch.get()

    def undecidable(self, moment: Moment) -> str:
        """The cause if the condition cannot be decided for this request, else ""."""
        for kind, name in moment.repeated or ():
            read = self.reads.get(kind, frozenset())
            if read is None or name in read:
                return f"{kind}: {name[:60]!r} occurs more than once"
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
    """The rules of one route in evaluation order."""

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
            except RuntimeError:  # joined they exceed a bound of the library, individually they do not
                joined = None
            self._joined = joined

    def __len__(self) -> int:
        return len(self.rules)

    def activation(self, ctx: RequestContext, moment: Moment) -> Any:
        """The variables that any of the rules names, built once for all of them."""
        assert self._activation is not None
        return self._activation({name: source(ctx, moment) for name, source in self._sources})

    def matches_none(self, activation: Any, moment: Moment) -> bool:
        """True if definitely no condition holds and none fails."""
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
        """The result of the condition, or the cause of its failure. Rules in shadow mode have a separate
        budget, so their cost does not reduce that of enforced rules."""
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
        return Failure(f"a condition must be a bool, this one returned {type(value).__name__}")
