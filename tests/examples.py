"""How many examples a property gets."""

from __future__ import annotations

from hypothesis import settings

__all__ = ["examples"]


def examples(n: int) -> int:
    """`n` under the default profile, fewer under a profile with fewer: a fifth in `make quick`."""
    return max(5, n * settings.default.max_examples // 100)
