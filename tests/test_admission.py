"""models/engine/admission.py on a virtual clock: a server that drains, and clients who obey, hammer or leave."""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.engine.admission import DECODE_COST, GRACE, HORIZON, MOST_PLACES, Admission
from models.failure import Failure

NEVER = float("inf")
DRAIN = 1000.0  # cost per second of the simulated server
MEAN = 500  # cost of a request


@dataclass(eq=False)
class Client:
    """One request on its way: when it came, what it was told, when it was admitted."""

    number: int
    cost: int
    came: float
    deadline: float = NEVER
    told: list[int] = field(default_factory=list)
    kept: bool = False
    due: float = 0.0  # of the first promise
    tries: int = 0
    admitted: float | None = None

    @property
    def waited(self) -> float:
        assert self.admitted is not None
        return self.admitted - self.came


class World:
    """A clock, a server of some slots that share the drain, and whoever comes."""

    def __init__(self, seed: int, max_cost: int = 30_000, slots: int = 4) -> None:
        self.random = Random(seed)
        self.admission = Admission(max_cost)
        self.now = 0.0
        self.drain = DRAIN
        self.work = 0.0
        self.most_queued = self.most_promises = 0
        self.clients: list[Client] = []
        self._slots = slots
        self._free = slots
        self._queue: deque[Client] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.refused: Callable[[Client, int], None] = self.obey
        self.finished: Callable[[Client], None] = lambda client: None

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def come(self, deadline: float = NEVER) -> Client:
        cost = round(MEAN * self.random.uniform(0.2, 1.8))
        client = Client(len(self.clients), cost, self.now, deadline)
        self.clients.append(client)
        self.knock(client)
        return client

    def newcomers(self, per_second: float, until: float, deadline: float = NEVER) -> None:
        """Poisson, whatever happens to those who came before."""

        def one() -> None:
            if self.now < until:
                self.come(deadline)
                self.after(self.random.expovariate(per_second), one)

        self.after(self.random.expovariate(per_second), one)

    def knock(self, client: Client) -> None:
        client.tries += 1
        try:
            self.admission.admit(client.cost, ("request", client.number), client.deadline, self.now)
        except Failure as failure:
            assert failure.code == "queue_full" and failure.retry_after is not None
            wait = math.ceil(failure.retry_after)  # as serving/errors.py writes it
            client.told.append(wait)
            if len(client.told) == 1:
                client.kept = "no place" not in failure.message
                client.due = self.now + wait
            self.refused(client, wait)
        else:
            client.admitted = self.now
            self._queue.append(client)
        self.most_queued = max(self.most_queued, self.admission.queued)
        self.most_promises = max(self.most_promises, self.admission.promises)
        self._start()

    def obey(self, client: Client, wait: int) -> None:
        """Back when told, up to a second late; but who is told that no place is kept goes elsewhere."""
        if client.kept:
            self.obey_always(client, wait)

    def obey_always(self, client: Client, wait: int) -> None:
        self.after(wait + self.random.random(), partial(self.knock, client))

    def _start(self) -> None:
        while self._free and self._queue:
            client = self._queue.popleft()
            self._free -= 1
            self.admission.start(client.cost, self.now)
            self.after(client.cost * self._slots / self.drain, partial(self._finish, client))

    def _finish(self, client: Client) -> None:
        self._free += 1
        self.work += client.cost
        self.admission.finish(client.cost, self.now, 1.0)
        self.finished(client)
        self._start()

    def promised(self, since: float = 0.0, until: float = NEVER) -> list[Client]:
        """Who was promised a place and has come back at least once."""
        return [client for client in self.clients if client.kept and client.tries > 1 and since <= client.came < until]


FULL = 5250  # of 6000: all that newcomers may fill


def full() -> Admission:
    """No room for newcomers, and 90 in a second promised."""
    admission = Admission(6000)
    admission.admit(FULL, "what fills it", NEVER, 0.0)
    return admission


def refusal(admission: Admission, cost: int, name: object, now: float, deadline_left: float = NEVER) -> Failure:
    with pytest.raises(Failure) as caught:
        admission.admit(cost, name, deadline_left, now)
    assert caught.value.code == "queue_full"
    return caught.value


def share(clients: list[Client], holds: Callable[[Client], bool]) -> float:
    return sum(map(holds, clients)) / len(clients)


def at_first_return(client: Client) -> bool:
    return client.tries == 2 and client.admitted is not None


def test_cold_a_full_queue_is_taken_to_drain_in_a_minute_and_the_refusal_shows_the_figures() -> None:
    admission = Admission(6000)
    admission.admit(5000, "first", NEVER, 0.0)
    assert (admission.queued, admission.rate, admission.wait) == (5000, 100.0, 50.0)
    failure = refusal(admission, 1000, "second", 0.0)
    # 750 of the room are reserved: 6000 - 5250 at 90 in a second.
    assert failure.retry_after == 9
    assert failure.message == (
        "work worth 5000 tokens of 6000 is waiting, about 50 s; places kept: 1; "
        "a place is kept for this one until 5 s after Retry-After"
    )
    assert (admission.promises, admission.queued) == (1, 5000)


def test_an_empty_queue_refuses_nobody() -> None:
    admission = Admission(1000)
    admission.admit(5000, "huge", 0.0, 0.0)
    assert admission.queued == 5000
    assert refusal(admission, 1, "small", 0.0).retry_after is not None
    admission.start(5000, 1.0)
    admission.admit(10, "small, early, but nothing waits", 0.0, 1.0)
    assert (admission.queued, admission.running) == (10, 5000)


def test_each_next_refused_is_told_a_later_time() -> None:
    admission = full()
    waits = [refusal(admission, 500, number, 0.0).retry_after for number in range(5)]
    assert waits == [6, 12, 17, 23, 28]  # 500 at 90 in a second


def test_who_is_early_is_told_what_remains_of_the_same_promise() -> None:
    admission = full()
    refusal(admission, 500, "one", 0.0)
    refusal(admission, 500, "two", 0.0)
    assert [refusal(admission, 500, "one", now).retry_after for now in (0.0, 1.5, 5.9)] == [6, 4.5, pytest.approx(0.1)]
    assert refusal(admission, 500, "two", 6.0).retry_after == 6
    assert admission.promises == 2


@pytest.mark.parametrize("late", [0.0, 1.0, GRACE])
def test_who_is_back_in_time_is_admitted_and_a_newcomer_meanwhile_is_not(late: float) -> None:
    admission = full()
    refusal(admission, 500, "one", 0.0)
    admission.leave(500, 5.0)
    refusal(admission, 500, "newcomer", 6.0 + late)
    admission.admit(500, "one", NEVER, 6.0 + late)
    assert admission.queued == FULL


def test_a_place_not_taken_up_is_dropped_and_its_room_is_free() -> None:
    admission = full()
    refusal(admission, 500, "one", 0.0)
    admission.leave(500, 5.0)
    refusal(admission, 500, "newcomer", 6.0 + GRACE)
    admission.admit(500, "another newcomer", NEVER, 6.0 + GRACE + 0.01)
    assert admission.promises == 1  # the first newcomer's
    assert refusal(admission, 500, "one", 6.0 + GRACE + 0.01).retry_after is not None


def test_a_newcomer_who_leaves_room_for_every_promise_is_admitted() -> None:
    admission = full()
    refusal(admission, 500, "one", 0.0)
    admission.leave(900, 1.0)
    admission.admit(400, "newcomer", NEVER, 1.0)
    refusal(admission, 500, "greedy", 1.0)


def test_beyond_the_horizon_and_beyond_the_places_no_place_is_kept() -> None:
    admission = full()
    told = [refusal(admission, 5000, number, 0.0) for number in range(4)]
    assert [failure.retry_after for failure in told] == [56, 112, HORIZON, HORIZON]
    assert ["no place is kept" in failure.message for failure in told] == [False, False, True, True]
    assert admission.promises == 2
    admission = full()
    for number in range(MOST_PLACES + 100):
        failure = refusal(admission, 1, number, 0.0)
    assert admission.promises == MOST_PLACES
    assert "no place is kept" in failure.message
    assert failure.retry_after == math.ceil((MOST_PLACES + 1) / 90)


def test_a_slower_drain_gives_a_promise_a_new_time_and_keeps_its_order() -> None:
    admission = full()
    refusal(admission, 500, "one", 0.0)
    refusal(admission, 500, "two", 0.0)
    again = refusal(admission, 800, "one", 8.0)  # nothing was drained
    assert again.retry_after == 9 and "a place is kept" in again.message
    admission.leave(300, 12.0)
    refusal(admission, 800, "two", 12.0)  # now it would fit, but not besides the one ahead of it
    admission.leave(200, 16.0)
    admission.admit(800, "one", NEVER, 17.0)
    assert admission.promises == 1


def test_what_would_be_done_too_late_is_refused_at_once() -> None:
    admission = Admission(6000)  # 100 in a second
    admission.admit(2000, "first", NEVER, 0.0)
    refusal(admission, 1000, "late", 0.0, deadline_left=15.0)
    admission.admit(1000, "in time", 40.0, 0.0)
    hopeless = refusal(admission, 1000, "hopeless", 0.0, deadline_left=5.0)
    assert "no place is kept" in hopeless.message
    assert hopeless.retry_after == math.ceil((3000 + 1000 - 250) / 90)


def test_running_rows_count_for_a_deadline_but_not_for_the_bound() -> None:
    admission = Admission(6000)
    for number in range(10):
        admission.admit(2000, number, NEVER, 0.0)
        admission.start(2000, 0.0)
    admission.admit(10, "waits", 0.0, 0.0)
    refusal(admission, 10, "late", 0.0, deadline_left=200.0)
    admission.admit(10, "in time", 250.0, 0.0)
    assert (admission.queued, admission.running) == (20, 20_000)


def test_the_expected_answer_is_the_most_at_first_and_then_what_answers_are() -> None:
    admission = Admission(6000)
    assert admission.estimate(100, 50) == 100 + DECODE_COST * 50
    assert admission.estimate(0, 0) == 1
    for _ in range(200):
        admission.admit(500, "a", NEVER, 0.0)
        admission.start(500, 0.0)
        admission.finish(500, 0.0, 0.25)
    assert admission.estimate(100, 1000) == pytest.approx(100 + DECODE_COST * 250, rel=0.02)
    admission.admit(500, "given up", NEVER, 0.0)
    admission.start(500, 0.0)
    admission.finish(500, 0.0)
    assert admission.estimate(100, 1000) == pytest.approx(100 + DECODE_COST * 250, rel=0.02)


def test_idle_time_and_light_load_are_not_measured() -> None:
    admission = Admission(6000)
    for second in range(0, 10_000, 100):
        admission.admit(10, second, NEVER, second)
        admission.start(10, second)
        admission.finish(10, second + 50, 1.0)
    assert admission.rate == 100.0


@pytest.mark.parametrize("slots", [1, 4, 33])
@pytest.mark.parametrize("returning", [1.0, 0.5, 0.0])
def test_three_times_the_load(slots: int, returning: float) -> None:
    """Ten minutes of newcomers who obey, or of whom a part never comes back."""
    world = World(slots, slots=slots)

    def refused(client: Client, wait: int) -> None:
        if world.random.random() < returning:
            world.obey(client, wait)

    world.refused = refused
    world.newcomers(3 * DRAIN / MEAN, 600)
    world.run(600)
    assert world.work >= 0.96 * DRAIN * 600  # what is in the slots at the end is not counted
    assert world.most_queued <= 30_000
    if returning:
        assert world.admission.rate == pytest.approx(DRAIN, rel=0.15)
        promised = world.promised()
        assert len(promised) > 400
        assert share(promised, at_first_return) >= 0.98
        assert share(promised, lambda client: client.told[0] <= client.waited <= 1.5 * client.told[0]) >= 0.97


@pytest.mark.parametrize("slots", [1, 4, 33])
def test_a_closed_loop_of_many_clients(slots: int) -> None:
    """Whoever has an answer asks again after a second or so; nobody starves."""
    world = World(slots, slots=slots)
    world.refused = world.obey_always

    def ask() -> None:
        world.come()

    world.finished = lambda client: world.after(world.random.expovariate(1.0), ask)
    for _ in range(150):
        world.after(world.random.random(), ask)
    world.run(600)
    promised = world.promised()
    assert world.work >= 0.96 * DRAIN * 600
    assert share(promised, at_first_return) >= 0.97
    settled = [client for client in world.clients if 200 < client.came < 500]
    assert max(client.waited for client in settled) < 90  # 150 clients are 75 seconds of work


def test_a_burst_is_told_what_a_queue_in_order_of_arrival_would_take() -> None:
    world = World(0)
    world.newcomers(3 * DRAIN / MEAN, 200)
    world.run(500)
    assert (world.admission.queued, world.admission.promises) == (0, 0)
    burst = [world.come() for _ in range(200)]
    ahead, compared = 0, 0
    for client in burst:
        ahead += client.cost
        real = (ahead - 30_000) / DRAIN
        if client.told and real > 15:
            compared += 1
            assert real <= client.told[0] <= 1.5 * real
    assert compared > 50
    world.run(700)
    assert share([client for client in burst if client.told], at_first_return) >= 0.98
    assert all(client.admitted is not None for client in burst)


def test_who_hammers_gains_nothing_and_harms_nobody() -> None:
    world = World(1)

    def refused(client: Client, wait: int) -> None:
        if client.kept and client.number % 5 == 0:
            world.after(0.5, partial(world.knock, client))
        else:
            world.obey(client, wait)

    world.refused = refused
    world.newcomers(3 * DRAIN / MEAN, 300)
    world.run(300)
    hammering = [client for client in world.promised() if client.number % 5 == 0 and client.admitted is not None]
    obeying = [client for client in world.promised() if client.number % 5 and client.admitted is not None]
    assert len(hammering) > 30
    assert all(client.waited > client.told[0] - 0.001 for client in hammering)
    assert sum(client.waited for client in obeying) / sum(client.told[0] for client in obeying) < 1.05
    assert share(obeying, at_first_return) >= 0.98
    assert world.work >= 0.98 * DRAIN * 300


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_changed_drain_is_noticed(factor: float) -> None:
    world = World(3)
    world.newcomers(3 * DRAIN / MEAN, 1400)
    world.drain = DRAIN / max(factor, 1.0)
    world.run(200)
    assert world.admission.rate == pytest.approx(world.drain, rel=0.2)
    world.drain *= factor
    world.run(260)
    assert world.drain / 2 < world.admission.rate < world.drain * 2
    world.run(320)
    assert world.admission.rate == pytest.approx(world.drain, rel=0.3)
    world.run(1400)
    settled = world.promised(since=850, until=1250)  # what was promised before has been worked off
    assert len(settled) > 80
    assert share(settled, at_first_return) >= 0.95


def test_under_a_deadline_shorter_than_the_queue_promises_hold_and_nothing_is_done_late() -> None:
    world = World(4)
    late: list[bool] = []
    world.finished = lambda client: late.append(world.now - (client.admitted or 0.0) > client.deadline)
    world.newcomers(3 * DRAIN / MEAN, 600, deadline=20.0)
    world.run(600)
    assert sum(late) <= 0.01 * len(late)
    assert share(world.promised(), at_first_return) >= 0.97
    assert world.work >= 0.97 * DRAIN * 600
    assert world.most_queued < 22_000


def test_state_stays_bounded_over_a_hundred_thousand_requests() -> None:
    admission = Admission(30_000)
    waiting: deque[int] = deque()
    most = 0
    for number in range(100_000):
        now = number * 0.2
        cost = 1000 + number % 2000
        try:
            admission.admit(cost, number, NEVER, now)
            waiting.append(cost)
        except Failure as failure:
            assert failure.retry_after is not None and 1 <= failure.retry_after <= HORIZON
        if number % 10 == 9 and waiting:
            admission.start(waiting[0], now)
            admission.finish(waiting.popleft(), now, 1.0)
        most = max(most, admission.promises)
    assert 10 < most < 200
    assert admission.queued == sum(waiting) <= 30_000
    assert admission.running == 0


class Machine(RuleBasedStateMachine):
    """Any order of calls: the books balance, the bound holds, and a promise moves only when its owner is due."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(10_000)
        self.now = 0.0
        self.waiting: list[int] = []
        self.running: list[int] = []
        self.due: dict[int, tuple[float, int]] = {}
        self.numbers = count()

    def knock(self, number: int, cost: int, deadline_left: float) -> None:
        known = self.due.pop(number, None)
        queued = self.admission.queued
        try:
            self.admission.admit(cost, number, deadline_left, self.now)
        except Failure as failure:
            assert queued > 0 and self.admission.queued == queued
            assert failure.retry_after is not None and 0 < failure.retry_after <= HORIZON
            if "no place" not in failure.message:
                due = self.now + failure.retry_after
                if known and self.now < known[0]:
                    assert due == pytest.approx(known[0])
                    due = known[0]
                self.due[number] = due, cost
        else:
            assert queued == 0 or not known or self.now >= known[0]
            assert queued == 0 or queued + cost <= 10_000
            self.waiting.append(cost)

    @rule(cost=st.integers(1, 12_000), deadline_left=st.sampled_from([0.0, 1.0, 30.0, NEVER]))
    def come(self, cost: int, deadline_left: float) -> None:
        self.knock(next(self.numbers), cost, deadline_left)

    @precondition(lambda self: self.due)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.due)))
        self.knock(number, self.due[number][1], NEVER)

    @precondition(lambda self: self.due)
    @rule(late=st.floats(0, 2 * GRACE))
    def wait_for_the_next(self, late: float) -> None:
        self.now = max(self.now, min(due for due, _ in self.due.values()) + late)
        self.forget()

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.forget()

    def forget(self) -> None:
        self.due = {number: due for number, due in self.due.items() if self.now <= due[0] + GRACE}

    @precondition(lambda self: self.waiting)
    @rule(leaves=st.booleans())
    def serve(self, leaves: bool) -> None:
        cost = self.waiting.pop(0)
        if leaves:
            self.admission.leave(cost, self.now)
        else:
            self.admission.start(cost, self.now)
            self.running.append(cost)

    @precondition(lambda self: self.running)
    @rule(share=st.none() | st.floats(0, 1))
    def finish(self, share: float | None) -> None:
        self.admission.finish(self.running.pop(0), self.now, share)

    @invariant()
    def balanced(self) -> None:
        assert self.admission.queued == sum(self.waiting)
        assert self.admission.running == sum(self.running)
        assert self.admission.promises >= len(self.due)
        assert 1 <= self.admission.rate < NEVER and 0 <= self.admission.wait < NEVER
        assert 1 <= self.admission.estimate(0, 100) <= DECODE_COST * 100


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
