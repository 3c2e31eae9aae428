"""What hours, gigabytes and seconds on RunPod come to, in dollars: arithmetic alone.

Prices by the hour and speeds are given to it; it looks nothing up.
"""

from dataclasses import dataclass

# From a process's start to ready, its weights not counted: an allowance. A CPU of two cores took 7 to 9 seconds;
# CUDA's part in it is not measured yet.
START_SECONDS = 15.0
# A network volume's gigabyte for a month, of the standard kind: docs.runpod.io, storage/s3-api, read 2026-11.
VOLUME_MONTH = 0.07
VOLUME_MONTH_BEYOND = 0.05
# Where the lower price begins. They write 1 TB; of the two readings the one that never estimates too little.
VOLUME_STEP = 1024
HOUR = 3600.0


@dataclass(frozen=True)
class Range:
    """The least and the most that is to be expected."""

    low: float
    high: float


def cold_start(
    bytes_read: int, slowest_mbps: float = 200, fastest_mbps: float = 400, start_seconds: float = START_SECONDS
) -> Range:
    """Seconds from a container's start to ready: its weights read at so many 10**6 bytes a second, and the rest."""
    _require(bytes_read >= 0 and start_seconds >= 0, "bytes and seconds cannot be negative")
    _require(0 < slowest_mbps <= fastest_mbps, "speeds must be more than 0, the slowest first")
    megabytes = bytes_read / 1e6
    return Range(start_seconds + megabytes / fastest_mbps, start_seconds + megabytes / slowest_mbps)


def of_seconds(price_per_hour: float, seconds: float) -> float:
    """Dollars for a worker or pod that is up for `seconds`."""
    _require(price_per_hour >= 0 and seconds >= 0, "prices and seconds cannot be negative")
    return price_per_hour * seconds / HOUR


def per_thousand(price_per_hour: float, documents_per_second: float) -> float:
    """Dollars for 1,000 documents on one that is busy all the time; the speed is measured, never guessed here."""
    _require(documents_per_second > 0, "documents a second must be more than 0")
    return of_seconds(price_per_hour, 1000 / documents_per_second)


def break_even_hours(pod_hour: float, flex_hour: float) -> float:
    """Warm hours a day from which a pod that is always up costs less than flex workers; more than 24: never."""
    _require(pod_hour >= 0 and flex_hour > 0, "a pod's price cannot be negative, a worker's must be more than 0")
    return 24 * pod_hour / flex_hour


def volume_month(gigabytes: int) -> float:
    """Dollars a month for a network volume of the standard kind."""
    _require(gigabytes >= 0, "gigabytes cannot be negative")
    beyond = max(0, gigabytes - VOLUME_STEP)
    return VOLUME_MONTH * (gigabytes - beyond) + VOLUME_MONTH_BEYOND * beyond


def budget_seconds(budget: float, price_per_hour: float) -> float:
    """How long `budget` dollars pay for one that is up all the time; of what is free, for ever."""
    _require(budget >= 0 and price_per_hour >= 0, "a budget and a price cannot be negative")
    return budget / price_per_hour * HOUR if price_per_hour else float("inf")


def _require(holds: bool, otherwise: str) -> None:
    """ValueError in the operator's words; a figure that is no number holds nothing."""
    if not holds:
        raise ValueError(otherwise)
