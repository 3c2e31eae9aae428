"""control/cost.py: the figures that were worked out by hand when the platform was studied, and what cannot be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.control import cost
from deploy.control.cost import Range
from models import catalog, plan

POD, FLEX = 0.99, 1.58  # dollars an hour for an RTX 5090, August 2026
prices = st.floats(0.01, 50)


def test_reading_the_weights_takes_a_minute_or_two() -> None:
    read = cost.cold_start(24_484_515_328, start_seconds=0)
    assert (round(read.low), round(read.high)) == (61, 122)
    unquantised = cost.cold_start(93_405_585_408, start_seconds=0)
    assert (round(unquantised.low), round(unquantised.high)) == (234, 467)


def test_a_cold_start_is_reading_and_starting() -> None:
    assert cost.cold_start(0) == Range(cost.START_SECONDS, cost.START_SECONDS)
    assert cost.cold_start(1_000_000_000, slowest_mbps=100, fastest_mbps=500, start_seconds=3) == Range(5, 13)


def test_it_reads_what_the_plan_says() -> None:
    """The interface to models/plan.py: bytes, whole, of the model that is deployed."""
    weights = plan.of_row(catalog.MIXTRAL).weights
    assert weights == 24_484_515_328
    assert cost.cold_start(weights).high < 420  # beyond that RunPod gives a worker up


def test_a_pod_pays_from_fifteen_warm_hours_a_day() -> None:
    assert round(cost.break_even_hours(POD, FLEX), 1) == 15.0
    assert cost.break_even_hours(2 * FLEX, FLEX) > 24  # never


def test_a_pods_month() -> None:
    assert cost.of_seconds(POD, 730 * 3600) == pytest.approx(722.70)


def test_a_cold_start_costs_five_cents() -> None:
    assert round(cost.of_seconds(FLEX, 120), 2) == 0.05


def test_a_thousand_documents() -> None:
    assert cost.per_thousand(3.6, 1) == pytest.approx(1.0)
    assert cost.per_thousand(POD, 2.5) == pytest.approx(0.11)


@pytest.mark.parametrize(
    ("gigabytes", "dollars"), [(0, 0), (60, 4.20), (1024, 71.68), (1025, 71.73), (4096, 71.68 + 3072 * 0.05)]
)
def test_a_volume_has_two_prices(gigabytes: int, dollars: float) -> None:
    assert cost.volume_month(gigabytes) == pytest.approx(dollars)


def test_a_budget_ends() -> None:
    assert cost.budget_seconds(5, 2.5) == 7200
    assert cost.budget_seconds(0, POD) == 0
    assert cost.budget_seconds(1, 0) == math.inf


@given(budget=st.floats(0, 10_000), price=prices)
def test_what_a_budget_pays_for_costs_the_budget(budget: float, price: float) -> None:
    assert cost.of_seconds(price, cost.budget_seconds(budget, price)) == pytest.approx(budget)


@given(pod=prices, flex=prices)
def test_at_break_even_both_cost_the_same(pod: float, flex: float) -> None:
    hours = cost.break_even_hours(pod, flex)
    assert cost.of_seconds(flex, hours * 3600) == pytest.approx(cost.of_seconds(pod, 24 * 3600))


@given(count=st.integers(0, 10**12), slow=st.floats(1, 1000), faster=st.floats(1, 10))
def test_a_range_has_its_lower_end_first(count: int, slow: float, faster: float) -> None:
    found = cost.cold_start(count, slow, slow * faster)
    assert cost.START_SECONDS <= found.low <= found.high


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (cost.cold_start, (-1,)),
        (cost.cold_start, (1, 0)),
        (cost.cold_start, (1, 400, 200)),
        (cost.cold_start, (1, 200, 400, -1)),
        (cost.of_seconds, (-1, 1)),
        (cost.of_seconds, (1, math.nan)),
        (cost.per_thousand, (1, 0)),
        (cost.per_thousand, (1, math.nan)),
        (cost.break_even_hours, (1, 0)),
        (cost.volume_month, (-1,)),
        (cost.budget_seconds, (-1, 1)),
    ],
)
def test_nonsense_is_refused_and_not_worked_out(function: object, arguments: tuple[float, ...]) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=r"must be more than 0|cannot be negative"):
        function(*arguments)
