"""The policies of a worker, and the gate that evaluates those of one route.

`Policies` holds what the rules of all routes of one worker share: compiled sets, counters, the ring of
violations, the rules set at run time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from fastgate._core.gates.policy import WatchingGate
from fastgate._core.pipeline.context import CONTINUE, SUSPEND, RequestContext
from fastgate._core.shm.directory import Directory
from fastgate._core.shm.recordring import RecordRing
from fastgate._core.shm.runtime import RuntimeTable, RuntimeValue
from fastgate._core.shm.table import LimiterTable
from fastgate.errors import REASONS
from fastgate.features.policy.counts import Counts, key_of
from fastgate.features.policy.language import Language
from fastgate.features.policy.rules import Failure, Rule, RuleSet
from fastgate.features.policy.settings import PolicyConfig
from fastgate.features.policy.variables import Moment
from fastgate.features.policy.violations import Violation, ViolationLog
from fastgate.settings import SECOND, duration_text, wildcard_matches
from fastgate.state.records import document_digest

__all__ = ["Policies", "PolicyGate", "switch_name"]

log = logging.getLogger("fastgate")

LOAD_S, LOAD_POLL_S = 5.0, 0.005
"""How long the first requests of a gateway wait for the policies in the store, which normally takes
milliseconds.
"""

MOST_PROGRAMS: Final = 512
"""Compiled conditions kept in addition to those in use, about 50 kB each."""


def switch_name(policy: str) -> str:
    """The name of a policy's switch in the runtime table: 1 is on, 0 off."""
    return f"policy/{policy}/enabled"


class Policies:
    """State shared by the policy gates of one worker: the language, and the compiled policies of the root and
    of run time."""

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
        runtime: RuntimeTable | None = None,
    ) -> None:
        """`waits`: the store has policies that the controller has not published yet."""
        self._waits = waits
        self._root = tuple(root)
        self._counter, self._table = counter, table
        self._reads = counter("fastgate_document_reads_total", document="policies") if counter else None
        self.directory = directory
        self.worker = worker
        self.counts = Counts(table)
        self.violations = ViolationLog(violations) if violations is not None else None
        self._language: Language | None = None
        self._programs: OrderedDict[str, Any] = OrderedDict()
        # Looked up here, while a plan is built: the slots are those of the names in its config.
        self._switches: dict[str, RuntimeValue] = {}
        if runtime is not None:
            self._switches = {
                policy.name: runtime.value(switch_name(policy.name), 1) for policy in self._root
            }
        self._sets: dict[tuple[PolicyConfig, ...], RuleSet] = {}
        self._document: tuple[int, int] | None = None  # index and version of the last document read
        self._runtime: tuple[PolicyConfig, ...] = ()
        self.take_up()

    def is_loaded(self) -> bool:
        """False while policies set at run time may still be missing."""
        if self._waits and self.directory is not None and self.directory.loaded:
            self._waits = False
        return not self._waits

    def take_up(self) -> None:
        """Loads the policies set at run time, if they have changed."""
        if self.directory is None:
            return
        if self._reads is not None:
            self._reads.add()
        found = self.directory.get(self.DOCUMENT)
        place = (found[0], found[1]) if found is not None else None
        if place == self._document:
            return
        policies: tuple[PolicyConfig, ...] = ()
        if found is not None:
            try:
                policies = msgspec.msgpack.decode(found[2], type=tuple[PolicyConfig, ...])
            except (
                msgspec.DecodeError
            ) as error:  # written by another version of fastgate: the root's policies stay in effect
                log.error("the policies set at run time cannot be read: %s", error)
        self._document, self._runtime = place, policies
        self._sets.clear()

    def of_route(self, name: str, own: Sequence[str | PolicyConfig]) -> RuleSet:
        """The rules of this route. A policy set at run time replaces the root's policy of the same name."""
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
            if len(self._programs) > MOST_PROGRAMS:  # from repeated changes of policies at run time
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(policy.when)
        return Rule(
            policy,
            program,
            counter=self._counter,
            table=self._table,
            switch=self._switches.get(policy.name),
        )


class PolicyGate(WatchingGate):
    """Evaluates the rules of one route."""

    def __init__(self, policies: Policies, route: str, own: Sequence[str | PolicyConfig]) -> None:
        super().__init__(policies.directory, policies.DOCUMENT)
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
            # The condition would see one reading of the path, the upstream another.
            return ctx.refuse(REASONS["ambiguous_path"])
        moment = Moment(ctx.now_ns, self._policies.counts)
        activation = rules.activation(ctx, moment)
        if rules.matches_none(activation, moment):
            return CONTINUE
        for rule in rules.rules:
            if rule.is_off():
                continue
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
            elif rule.enforce and ctx.upstream_override is None and rule.config.upstream is not None:
                ctx.send_to(rule.config.upstream)
        return CONTINUE

    async def request(self, ctx: RequestContext) -> int:
        """Waits for the policies of the store while the gateway starts: one of them may refuse this
        request."""
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
        """Records the violation. True if the rule is enforced."""
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
