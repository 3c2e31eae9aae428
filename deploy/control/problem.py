"""What RunPod answers instead of what it was asked for: RFC 9457 problems and broken connections as typed errors."""

import re

import httpx

# RunPod has no code for "no card is free", only words: those of its API and of its older ones.
CAPACITY = re.compile(
    r"no longer any instances|no (instances|gpus?|machines?|workers?|hosts?) (are |is )?(free|available)|capacity"
    r"|not enough free gpus|not have the resources|could not be placed|out of stock",
    re.IGNORECASE,
)


class ApiError(Exception):
    """RunPod did not do what it was asked, and would not the next time. `status` 0: there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NoCapacity(ApiError):
    """400: no such card is free there now."""


class Forbidden(ApiError):
    """403: the key, or the account, may not have this."""


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409: not in the state that it is in."""


class Limited(ApiError):
    """429; `wait` seconds until it may be asked again."""

    wait = 0.0


class Unavailable(ApiError):
    """5xx, a broken connection, or an answer that cannot be read."""


class Unsure(Unavailable):
    """The same of a POST: it may have been carried out."""


STATUSES = {403: Forbidden, 404: NotFound, 409: Conflict}


def read(response: httpx.Response, method: str) -> ApiError:
    """An answer that is none, typed."""
    status = response.status_code
    try:
        problem = response.json()
        told = "; ".join([f"{problem.get('title')}: {problem.get('detail')}", *problem.get("errors", [])])
        detail = str(problem.get("detail"))
    except (ValueError, AttributeError, TypeError):
        told = detail = "no reason given"
    message = f"RunPod answers {status} to {method} {response.request.url.path}: {told}"
    if status == 400:
        return (NoCapacity if CAPACITY.search(detail) else ApiError)(status, message)
    if status == 429:
        error = Limited(status, message)
        error.wait = read_wait(response.headers)
        return error
    if status >= 500 or status < 400:
        return (Unsure if method == "POST" else Unavailable)(status, message)
    return STATUSES.get(status, ApiError)(status, message)


def read_wait(headers: httpx.Headers) -> float:
    """Seconds that a 429 asks for: Retry-After, else until the windows that are used up begin anew."""
    if headers.get("Retry-After", "").isdigit():
        return float(headers["Retry-After"])
    return max((float(each) for each in re.findall(r"r=0;t=(\d+)", headers.get("RateLimit", ""))), default=1.0)
