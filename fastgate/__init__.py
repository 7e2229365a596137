"""fastgate: an API and AI gateway with a compiled hot path and plugins in plain Python.

The primitives of `fastgate._core` are here by name: `from fastgate import TokenBucket`. Their one list is
`fastgate._core.__all__`. It is loaded with the first of them that is asked for, so `import fastgate` alone
costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastgate._core import *  # noqa: F403
else:  # where a type checker does not take it for a promise of every name

    def __getattr__(name: str) -> Any:
        from importlib.util import find_spec

        # `from fastgate import cli` asks here before it looks for a module: no reason to load the primitives.
        if name == "__all__" or not (name.startswith("_") or find_spec(f"{__name__}.{name}")):
            from fastgate import _core

            if name == "__all__":
                return _core.__all__
            if name in _core.__all__:
                return getattr(_core, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from fastgate import _core

    return sorted({*globals(), *_core.__all__})
