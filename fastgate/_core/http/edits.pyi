import re
from collections.abc import Iterable, Mapping

__all__ = ["PLACE", "HeaderEdits", "Rewrite", "Template"]

PLACE: re.Pattern[str]

class Template:
    def __init__(self, text: str, param_names: Iterable[str] = (), in_path: bool = False) -> None: ...

class Rewrite:
    @staticmethod
    def prefix_to(prefix: str, replacement: str) -> Rewrite: ...
    @staticmethod
    def to_template(template: Template) -> Rewrite: ...
    @staticmethod
    def by_regex(pattern: str, to: str) -> Rewrite: ...

class HeaderEdits:
    def __init__(
        self,
        rename: Mapping[str, str] | None = None,
        remove: Iterable[str] = (),
        set: Mapping[str, str] | None = None,
        add: Mapping[str, str] | None = None,
        param_names: Iterable[str] = (),
        owns: bool = False,
    ) -> None: ...
    @property
    def owned(self) -> tuple[bytes, ...]: ...
