"""Values of tables as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def dumped(content: Any, default: Callable[[Any], str] = str) -> str:
    """Return ``content`` as JSON; numbers that JSON has no word for, such as NaN, are null.

    Args:
        content: What to write.
        default: Returns the text for what JSON knows nothing of.
    """
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, default=default)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, default=default)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
