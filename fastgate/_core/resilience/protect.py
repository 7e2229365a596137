"""Decorators: a circuit breaker or a bulkhead around a plain function or a coroutine function.

WHAT        protected(breaker, function), limited(bulkhead, function). Plain Python: inspect, asyncio and type
            checkers must see ordinary functions and coroutine functions.
STATE       none of its own.
WHO WRITES  no process.
COST        one Python call more than calling allow() and record() by hand, about 0.3 us.
SOURCES     functools.wraps; inspect.iscoroutinefunction
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from fastgate._core.clock import monotonic_ns

__all__ = ["exception_classes", "is_coroutine_function", "limited", "protected"]

P = ParamSpec("P")
R = TypeVar("R")


class Breaker(Protocol):
    """The part of CircuitBreaker that a decorated function uses; breaker.pyx imports this module."""

    times_calls: bool

    def admit(self) -> int:
        """A ticket; raises CircuitOpen."""

    def settle(self, ticket: int, latency_ns: int, error: BaseException | None = None) -> None:
        """Records how the call with this ticket ended."""


class Slots(AbstractContextManager[object], AbstractAsyncContextManager[object], Protocol):
    """The part of Bulkhead that a decorated function uses: entering takes a slot or raises BulkheadFull."""


def exception_classes(name: str, value: object) -> tuple[type[BaseException], ...]:
    """value, an exception class or several, as a tuple for isinstance(). TypeError names the argument."""
    classes = (value,) if isinstance(value, type) else value
    if not isinstance(classes, tuple | list | set | frozenset):
        raise TypeError(f"{name}: expected exception classes, got {value!r}")
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"{name}: expected exception classes, got {item!r}")
    return tuple(classes)


def protected(breaker: Breaker, function: Callable[P, R]) -> Callable[P, R]:
    """function, with each call passing the breaker. A refused call raises CircuitOpen and runs nothing."""
    admit, settle, timed = breaker.admit, breaker.settle, breaker.times_calls
    if not is_coroutine_function(function):

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            ticket = admit()
            began_ns = monotonic_ns() if timed else 0
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                settle(ticket, monotonic_ns() - began_ns if timed else 0, error)
                raise
            settle(ticket, monotonic_ns() - began_ns if timed else 0)
            return result

        return call

    @functools.wraps(function)
    async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        ticket = admit()
        began_ns = monotonic_ns() if timed else 0
        try:
            result = await cast("Awaitable[Any]", function(*args, **kwargs))
        except BaseException as error:
            settle(ticket, monotonic_ns() - began_ns if timed else 0, error)
            raise
        settle(ticket, monotonic_ns() - began_ns if timed else 0)
        return result

    return cast("Callable[P, R]", call_async)


def limited(bulkhead: Slots, function: Callable[P, R]) -> Callable[P, R]:
    """function, with each call taking a slot of the bulkhead. A refused call raises BulkheadFull."""
    if not is_coroutine_function(function):

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with bulkhead:
                return function(*args, **kwargs)

        return call

    @functools.wraps(function)
    async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        async with bulkhead:
            return await cast("Awaitable[Any]", function(*args, **kwargs))

    return cast("Callable[P, R]", call_async)


def is_coroutine_function(function: Callable[..., object]) -> bool:
    """Whether its calls are awaited. TypeError if it is neither kind of function."""
    if not callable(function):
        raise TypeError(f"function: expected a callable, got {type(function).__name__}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError("function: a generator has no one result; use `with` inside it")
    return inspect.iscoroutinefunction(function)
