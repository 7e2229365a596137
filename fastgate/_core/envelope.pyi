from typing_extensions import Buffer

__all__ = ["open_fields"]

def open_fields(
    data: Buffer, skip: int, key: bytes | None
) -> tuple[int, int, tuple[bytes, ...], int, bytes, bool] | str | None: ...
