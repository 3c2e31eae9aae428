"""What a page of another origin may send from a browser, and what it may read of the answer. Knows no route."""

from collections.abc import Sequence
from typing import Any


def allow(origins: Sequence[str]) -> dict[str, Any]:
    """What CORSMiddleware is given for `origins`; of the service and of its edge, so that either answers alike."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": ["Authorization", "Content-Type", "Idempotency-Key", "Prefer", "X-API-Key", "X-Request-Id"],
        "expose_headers": ["Location", "Retry-After", "X-Request-Id"],
    }
