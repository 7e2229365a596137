"""Makes every extension class of a module by hand and calls all it has with odd arguments.

Run as a program by test_handmade.py, one process per module, since what is looked for ends the process. The
output names each step. A step may return anything or raise any Exception.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    0,
    -1,
    1,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\ud800",
    b"",
    b"bytes",
    b"a: b\r\n\r\n",
    bytearray(3),
    (),
    (1,),
    ("a", b"b"),
    [b"x"],
    {},
    {"a": 1},
    object(),
    len,
)
MOST_ARGUMENTS = 4
ENDLESS = {"run", "run_forever"}
STEP_S = 5


def odd_calls(seed: int) -> Iterator[tuple[Any, ...]]:
    """Argument lists: none, each odd value alone and repeated, and some mixtures."""
    yield ()
    for value in ODD:
        for count in range(1, MOST_ARGUMENTS + 1):
            yield (value,) * count
    for shift in range(len(ODD)):
        for count in range(2, MOST_ARGUMENTS + 1):
            yield tuple(ODD[(shift + seed + 7 * i) % len(ODD)] for i in range(count))


def late(_number: int, _frame: object) -> None:
    raise TimeoutError


def attempt(name: str, call: Callable[[], Any]) -> Any:
    """What the call returned, or None if it raised."""
    os.write(1, f"{name}\n".encode())
    signal.alarm(STEP_S)
    try:
        return call()
    except Exception:
        return None
    finally:
        signal.alarm(0)


def use(name: str, subject: Any, seed: int) -> None:
    """Every property and every method of the object."""
    kind = type(subject)
    for member in sorted(set(dir(kind))):
        if member in {"__class__", "__reduce__", "__reduce_ex__", "__new__", "__init_subclass__"} | ENDLESS:
            continue
        found = inspect.getattr_static(kind, member, None)
        if inspect.isdatadescriptor(found):
            attempt(f"{name}.{member}", lambda member=member: getattr(subject, member))
            for value in ODD:
                attempt(f"{name}.{member} = {value!r:.40}", lambda m=member, v=value: setattr(subject, m, v))
        elif callable(getattr(kind, member, None)):
            for arguments in odd_calls(seed):
                shown = f"{name}.{member}{arguments!r:.80}"
                made = attempt(shown, lambda m=member, a=arguments: getattr(subject, m)(*a))
                if hasattr(made, "__next__"):
                    attempt(f"next of {shown}", lambda made=made: list(itertools.islice(made, 3)))
                if hasattr(made, "close") and inspect.iscoroutine(made):
                    made.close()
    attempt(f"repr of {name}", lambda: repr(subject))
    for operation in (bool, len, hash, iter, str, memoryview):
        attempt(f"{operation.__name__} of {name}", lambda operation=operation: operation(subject))
    for value in ODD:
        attempt(f"{name}[{value!r:.40}]", lambda value=value: subject[value])
        attempt(f"{name} == {value!r:.40}", lambda value=value: subject == value)
        attempt(f"{value!r:.40} in {name}", lambda value=value: value in subject)


def main(module_name: str) -> None:
    signal.signal(signal.SIGALRM, late)
    module = importlib.import_module(module_name)
    classes = [
        found
        for found in vars(module).values()
        if inspect.isclass(found) and found.__module__ == module_name and not found.__flags__ & (1 << 9)
    ]
    for cls in classes:
        name = cls.__name__
        subjects = []
        for arguments in [(), *itertools.islice(odd_calls(3), 1, None)]:
            shown = f"{arguments!r:.80}"
            raw = attempt(f"{name}.__new__{shown}", lambda c=cls, a=arguments: c.__new__(c, *a))
            if raw is not None and len(subjects) < 2:
                subjects.append((f"bare {name}", raw))
            made = attempt(f"{name}{shown}", lambda c=cls, a=arguments: c(*a))
            if made is not None and len(subjects) < 4:
                subjects.append((f"{name}{shown}", made))
        for seed, (shown, subject) in enumerate(subjects):
            use(shown, subject, seed)
    functions = [
        (n, f)
        for n, f in vars(module).items()
        if callable(f) and not inspect.isclass(f) and not n.startswith("__")
    ]
    for name, function in functions:
        if getattr(function, "__module__", module_name) == module_name:
            for arguments in odd_calls(5):
                attempt(f"{name}{arguments!r:.80}", lambda f=function, a=arguments: f(*a))
    os.write(1, b"done\n")


if __name__ == "__main__":
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        main(sys.argv[1])
