"""What is under way and what has ended lately: who asked what route, how far it is, how it ended. Holds no text."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.caller import Caller

RECENT = 100


class Activity:
    """Kept by the gate, shown by /status."""

    def __init__(self) -> None:
        self._active: dict[Caller, None] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._active)

    @contextmanager
    def under_way(self, caller: Caller) -> Iterator[None]:
        """The request of `caller`, from its body to the end of its response."""
        self._active[caller] = None
        try:
            yield
        except BaseException:
            caller.outcome = caller.outcome or "internal_error"
            raise
        finally:
            del self._active[caller]
            outcome = "client_closed_request" if caller.gone else caller.outcome or "done"
            self._recent.append({**_tell(caller), "outcome": outcome})

    def tell(self) -> dict[str, Any]:
        """The oldest active one first, the last finished one first; seconds since it came in, or that it took."""
        active = [{**_tell(caller), **_progress(caller)} for caller in self._active]
        return {"active": active, "recent": list(reversed(self._recent))}


def _tell(caller: Caller) -> dict[str, Any]:
    seconds = round(time.monotonic() - caller.since, 3)
    return {"request_id": caller.request_id, "route": caller.path, "seconds": seconds}


def _progress(caller: Caller) -> dict[str, Any]:
    """Nothing before its ticket is there."""
    return {} if caller.progress is None else {"progress": round(caller.progress, 3)}
