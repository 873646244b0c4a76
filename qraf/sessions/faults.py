"""What a client may see of an error, in the words of the frames."""

from __future__ import annotations

from qraf.errors import QrafError
from qraf.frames import ErrorBody
from qraf.tenants import outside

__all__ = ["error_body"]

_INTERNAL = ErrorBody(code="internal", title="Internal error", detail="an internal error; it was logged")


def error_body(error: BaseException) -> ErrorBody:
    """The facts of our own errors; of a foreign exception nothing, it is logged where it is caught."""
    error = outside(error)
    if not isinstance(error, QrafError):
        return _INTERNAL
    return ErrorBody(
        code=error.code,
        title=error.title,
        detail=getattr(error, "detail", None) or str(error),
        pointer=getattr(error, "pointer", ""),
        retryable=error.retryable,
        retry_after_ms=getattr(error, "retry_after_ms", None),
    )
