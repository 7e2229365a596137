from typing import Final, final

__all__ = ["RequestRules"]

@final
class RequestRules:
    cacheable: Final[bool]
    unsafe: Final[bool]
    head: Final[bool]
    post: Final[bool]
    plain: Final[bool]
    simple: Final[bool]
    why: Final[str | None]
    key: Final[bytes | None]
    @property
    def url_key(self) -> bytes | None: ...
