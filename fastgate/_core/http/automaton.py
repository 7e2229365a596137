"""Regular expressions in linear time, compiled once, and a cost budget for text functions.

WHAT        `Automaton` decides whether a pattern of RE2's syntax is found in a text: a nondeterministic
            automaton whose deterministic states are created on demand. `Budget` is the permitted cost of one
            evaluation, in measured nanoseconds; exceeding it raises Exhausted.
STATE       The states of all automatons together are bounded: beyond MOST_STEPS transitions they are
            dropped and recreated.
WHO WRITES  The worker's loop; nothing is shared.
COST        about 60 ns per character of a text whose states are known; a new transition costs its nodes.
            Creating one takes 2 us per character of the pattern and 3 us per node, 15 ms at most.
SOURCES     Thompson 1968; RE2 (lazy deterministic states, bounded memory). Patterns are parsed by CPython's
            own parser; constructs that it parses differently from RE2 are rejected (Unsupported).
"""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from re import _constants as _op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

__all__ = ["Automaton", "Budget", "Exhausted", "Patterns", "Unsupported"]

MOST_NODES: Final = 4000
# Parts of a pattern including every copy: repetitions of nothing, `((){1000}){1000}`, create no nodes.
MOST_ITEMS: Final = 4 * MOST_NODES
MOST_STEPS: Final = 100_000
MOST_PATTERNS: Final = 512
# Separate bounds for patterns from requests and from the config: about 200 bytes a node.
MOST_PATTERN_NODES: Final = 50_000
MOST_KEPT_NODES: Final = 1_000_000

CHARACTER_NS: Final = 100
NODE_NS: Final = 250
CALL_NS: Final = 4_000
# Costs of creating an automaton: parsing a character of the pattern, and a part of it including every copy
PARSE_NS: Final = 2_500
ITEM_NS: Final = 5_000

# Parsed differently by CPython's parser and by RE2, or supported by only one of them.
_ELSEWISE: Final = re.compile(r"\[:|\{,|\\[0-9bBZQEpPCzx]|\(\?<|[*+?}]\+|&&|\|\||--|~~|\[\[")


class Unsupported(Exception):
    """This engine does not support the pattern; RE2 may."""


class Exhausted(ValueError):
    """The evaluation would exceed its budget."""


class Budget:
    """The remaining budget of one evaluation."""

    __slots__ = ("is_exhausted", "left_ns")

    def __init__(self, left_ns: int = 0) -> None:
        self.left_ns = left_ns
        self.is_exhausted = False

    def reset(self, left_ns: int) -> None:
        self.left_ns = left_ns
        self.is_exhausted = False

    def spend(self, cost_ns: int) -> None:
        """Raises Exhausted, and empties the budget, if less than that is left."""
        self.left_ns -= cost_ns
        if self.left_ns < 0:
            self.is_exhausted = True
            raise Exhausted("the condition exceeds the budget of a request")


class _State(dict[str, Any]):
    """A deterministic state: the next state by character. at_end: whether the text may end here."""

    __slots__ = ("at_end", "nodes")

    def __init__(self, nodes: frozenset[int], at_end: bool) -> None:
        super().__init__()
        self.nodes = nodes
        self.at_end = at_end


_Set = tuple[bool, frozenset[str], tuple[tuple[str, str], ...], tuple[Any, ...]]
_CHARACTER, _SPLIT, _BEGIN, _END, _MATCH = range(5)


class Automaton:
    """One pattern. Raises Unsupported if this engine does not support it, Exhausted if creating it exceeds
    the remaining budget."""

    _steps = 0  # of all automatons
    _all: Final[weakref.WeakSet[Automaton]] = weakref.WeakSet()

    def __init__(self, pattern: str, budget: Budget | None = None) -> None:
        self._budget = budget
        self._items = 0
        if budget is not None:
            budget.spend(PARSE_NS * len(pattern))
        if _ELSEWISE.search(pattern):
            raise Unsupported(pattern)
        try:
            tree = _parser.parse(pattern)
        except (re.error, RecursionError, OverflowError):
            raise Unsupported(pattern) from None
        flags = tree.state.flags & ~re.UNICODE
        if flags & ~(re.IGNORECASE | re.DOTALL):
            raise Unsupported(pattern)
        self._ignores_case = bool(flags & re.IGNORECASE)
        self._dot_is_all = bool(flags & re.DOTALL)
        self._nodes: list[tuple[int, Any, int]] = [(_MATCH, None, -1)]
        try:
            self._start = self._sequence(tree, 0)
        except RecursionError:
            raise Unsupported(pattern) from None
        self._budget = None
        self.size = len(self._nodes)
        self._restart = self._reached([self._start], begins=False)
        self._matches_anywhere = 0 in self._restart
        self._clear()
        Automaton._all.add(self)

    def search(self, text: str, budget: Budget) -> bool:
        """True if the pattern is found anywhere in the text."""
        budget.spend(CHARACTER_NS * len(text))
        if self._matches_anywhere:
            return True
        state = self._first
        if 0 in state.nodes:
            return True
        for character in text:
            following = state.get(character)
            if following is None:
                following = self._step(state, character, budget)
            if following is True:
                return True
            if following is False:
                return False
            state = following
        return state.at_end

    def _clear(self) -> None:
        self._states: dict[frozenset[int], _State] = {}
        nodes = self._reached([self._start], begins=True)
        self._first = _State(nodes, self._ends(nodes, begins=True))

    def _step(self, state: _State, character: str, budget: Budget) -> _State | bool:
        budget.spend(NODE_NS * (len(state.nodes) + 4))
        moved = [
            self._nodes[node][2]
            for node in state.nodes
            if self._nodes[node][0] == _CHARACTER and self._takes(self._nodes[node][1], character)
        ]
        reached = self._reached(moved, begins=False) | self._restart
        budget.spend(NODE_NS * len(reached))
        found: _State | bool
        if 0 in reached:
            found = True
        elif not reached:
            found = False
        else:
            known = self._states.get(reached)
            if known is None:
                known = self._states[reached] = _State(reached, self._ends(reached, begins=False))
            found = known
        Automaton._steps += 1
        if Automaton._steps > MOST_STEPS:
            Automaton._steps = 0
            for automaton in Automaton._all:
                automaton._clear()
        state[character] = found
        return found

    def _reached(self, nodes: list[int], *, begins: bool, ends: bool = False) -> frozenset[int]:
        """The nodes reached without a character that wait for a character or the end, and the match."""
        found: set[int] = set()
        seen: set[int] = set()
        todo = list(nodes)
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            kind, argument, following = self._nodes[number]
            if kind == _SPLIT:
                todo += (argument, following)
            elif kind == _BEGIN:
                if begins:
                    todo.append(following)
            elif kind == _END:
                found.add(number)
                if ends:
                    todo.append(following)
            else:
                found.add(number)
        return frozenset(found)

    def _ends(self, nodes: frozenset[int], *, begins: bool) -> bool:
        behind = [self._nodes[node][2] for node in nodes if self._nodes[node][0] == _END]
        return 0 in nodes or (bool(behind) and 0 in self._reached(behind, begins=begins, ends=True))

    # ---- from the parser's tree to nodes, the last one first

    def _node(self, kind: int, argument: Any, following: int) -> int:
        if len(self._nodes) >= MOST_NODES:
            raise Unsupported("too large")
        self._nodes.append((kind, argument, following))
        return len(self._nodes) - 1

    def _sequence(self, items: Any, following: int) -> int:
        for kind, argument in reversed(list(items)):
            following = self._item(kind, argument, following)
        return following

    def _item(self, kind: Any, argument: Any, following: int) -> int:
        self._items += 1
        if self._items > MOST_ITEMS:
            raise Unsupported("too large")
        if self._budget is not None:
            self._budget.spend(ITEM_NS)
        if kind in (_op.LITERAL, _op.NOT_LITERAL, _op.ANY, _op.IN):
            return self._node(_CHARACTER, self._set_of(kind, argument), following)
        if kind is _op.BRANCH:
            starts = [self._sequence(branch, following) for branch in argument[1]]
            joined = starts[-1]
            for start in reversed(starts[:-1]):
                joined = self._node(_SPLIT, start, joined)
            return joined
        if kind is _op.SUBPATTERN:
            _group, added, removed, items = argument
            if added or removed:
                raise Unsupported("flags of a group")
            return self._sequence(items, following)
        if kind in (_op.MAX_REPEAT, _op.MIN_REPEAT):
            least, most, repeated = argument
            return self._repeat(least, most, repeated, following)
        if kind is _op.AT and argument in (_op.AT_BEGINNING, _op.AT_BEGINNING_STRING):
            return self._node(_BEGIN, None, following)
        if kind is _op.AT and argument is _op.AT_END:
            return self._node(_END, None, following)
        raise Unsupported(str(kind))

    def _repeat(self, least: int, most: Any, items: Any, following: int) -> int:
        if most is _op.MAXREPEAT:
            loop = self._node(_SPLIT, -1, following)
            self._nodes[loop] = (_SPLIT, self._sequence(items, loop), following)
            start = loop
        else:
            start = following
            for _ in range(int(most) - least):  # x(x(x)?)?, so that few nodes are reached at once
                start = self._node(_SPLIT, self._sequence(items, start), following)
        for _ in range(least):
            start = self._sequence(items, start)
        return start

    # ---- sets of characters: (negated, literals, ranges, categories)

    def _set_of(self, kind: Any, argument: Any) -> _Set:
        if kind is _op.ANY:
            return (True, frozenset() if self._dot_is_all else frozenset("\n"), (), ())
        if kind is not _op.IN:
            return (kind is _op.NOT_LITERAL, frozenset((self._plain(argument),)), (), ())
        negated = False
        literals: set[str] = set()
        ranges: list[tuple[str, str]] = []
        categories: list[Any] = []
        for what, value in argument:
            if what is _op.NEGATE:
                negated = True
            elif what is _op.LITERAL:
                literals.add(self._plain(value))
            elif what is _op.RANGE:
                ranges.append((self._plain(value[0]), self._plain(value[1])))
            elif what is _op.CATEGORY and value in _CATEGORIES:
                categories.append(_CATEGORIES[value])
            else:
                raise Unsupported(str(what))
        return (negated, frozenset(literals), tuple(ranges), tuple(categories))

    def _plain(self, code: int) -> str:
        if self._ignores_case and code > 127:
            raise Unsupported("case beyond ASCII")
        return chr(code)

    def _takes(self, wanted: Any, character: str) -> bool:
        negated, literals, ranges, categories = wanted
        if self._ignores_case:
            folded = character.casefold()
            spelled = {character, folded, folded.upper()} if len(folded) == 1 else {character}
        else:
            spelled = {character}
        for one in spelled:
            if (
                one in literals
                or any(low <= one <= high for low, high in ranges)
                or any((one in members) is not inverted for members, inverted in categories)
            ):
                return not negated
        return bool(negated)


_DIGITS: Final = frozenset("0123456789")
_SPACES: Final = frozenset("\t\n\f\r ")
_WORDS: Final = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_CATEGORIES: Final = {  # RE2's, which are of ASCII
    _op.CATEGORY_DIGIT: (_DIGITS, False),
    _op.CATEGORY_NOT_DIGIT: (_DIGITS, True),
    _op.CATEGORY_SPACE: (_SPACES, False),
    _op.CATEGORY_NOT_SPACE: (_SPACES, True),
    _op.CATEGORY_WORD: (_WORDS, False),
    _op.CATEGORY_NOT_WORD: (_WORDS, True),
}


class Patterns:
    """Automatons by pattern, least recently used first to be evicted. Those of the config and those of
    requests have separate bounds, so requests cannot evict the former."""

    def __init__(self) -> None:
        self._kept = _Recent(MOST_KEPT_NODES, MOST_KEPT_NODES)
        self._known = _Recent(MOST_PATTERN_NODES, MOST_PATTERNS)

    def keep(self, pattern: str) -> None:
        """Creates the automaton of a pattern of the config. No request pays for it."""
        if pattern not in self._kept.automatons:
            self._kept.add(pattern, _made(pattern, None))

    def get(self, pattern: str, budget: Budget) -> Automaton | None:
        """The automaton of this pattern; None if it is Unsupported. Creating one is charged to the budget."""
        for recent in (self._kept, self._known):
            if pattern in recent.automatons:
                recent.automatons.move_to_end(pattern)
                return recent.automatons[pattern]
        found = _made(pattern, budget)
        self._known.add(pattern, found)
        return found


class _Recent:
    """Automatons, bounded by their nodes; the least recently used are evicted."""

    def __init__(self, most_nodes: int, most: int) -> None:
        self.automatons: OrderedDict[str, Automaton | None] = OrderedDict()
        self.nodes = 0
        self._most_nodes, self._most = most_nodes, most

    def add(self, pattern: str, automaton: Automaton | None) -> None:
        self.automatons[pattern] = automaton
        self.nodes += automaton.size if automaton is not None else 1
        while self.nodes > self._most_nodes or len(self.automatons) > self._most:
            _, oldest = self.automatons.popitem(last=False)
            self.nodes -= oldest.size if oldest is not None else 1


def _made(pattern: str, budget: Budget | None) -> Automaton | None:
    try:
        return Automaton(pattern, budget)
    except Unsupported:
        return None
