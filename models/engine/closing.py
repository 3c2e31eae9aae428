"""Answers that always close: the shortest way to a whole JSON value, kept open for a row until its last token.

Knows budgets and plans; how a plan is found stands in search.py.
"""

from models.engine.matcher import Matcher
from models.engine.pieces import Pieces, Plan
from models.engine.place import START, Place
from models.engine.search import TAILS, Samples, Search, Walk

NEAR, MOST_NEAR = 64, 320  # tokens to spare below which every choice is looked at; more where the answer is long
BEGINNINGS = b"{[,"
FAR = 1000  # tokens; what begins while more are left is taken to end in time


class Closer(Pieces):
    """Finds closing paths in the tokens of one tokenizer."""

    def path(self, matcher: Matcher, most: int, place: Place = START, samples: Samples = ()) -> list[int] | None:
        """Ids, at most `most`, that lead from the matcher's state to a whole answer; None where none were found.
        `samples`: strings that may be worth a try."""
        plan = self.plan(matcher, place, samples)
        return None if plan is None or plan.size > most else self.tokens(plan)

    def plan(self, matcher: Matcher, place: Place, samples: Samples = (), hint: Plan | None = None) -> Plan | None:
        walk = Walk(matcher.deep_copy(), place, self.ids)
        if not Search(self, samples, hint).finish(walk):
            return None
        return self.cover(walk.text)


class Guard:
    """Keeps one row able to close: from a plan that fits, a choice is only admitted where a plan still fits after it.

    While more than `near` tokens are to spare, a choice that begins nothing costs no search: the next look is taken
    when a quarter of what is to spare beyond that is gone, or when something begins. An answer whose end meanwhile
    comes to take all the rest is `lost`; it is looked at again when half of its budget is gone.
    """

    def __init__(self, closer: Closer, matcher: Matcher, path: list[int] | None, samples: Samples = ()) -> None:
        """`matcher` is the row's own, before each token it takes; `path` the closer's for it, within the budget."""
        self._closer = closer
        self._matcher = matcher
        self._samples = samples
        self._place = START
        self._plan = None if path is None else closer.cover(closer.decode(path))
        self._near = min(NEAR + len(path or ()), MOST_NEAR)
        self._due = 1 << 62
        self.closing = False
        self.lost = path is None

    @property
    def plan(self) -> list[int] | None:
        """The tokens that close the answer from here, where they are known."""
        return None if self._plan is None else self._closer.tokens(self._plan)

    def admit(self, token: int, left: int) -> int:
        """The token to take where the sampler has chosen `token` and `left` tokens may be taken, this one included."""
        if token in self._closer.stops or self._follow([token], left):
            return token
        self.closing = True
        if not (plan := self.plan):
            return self._closer.stops[0]
        self._follow(plan[:1], left)
        return plan[0]

    def force(self, tokens: list[int], left: int) -> list[int]:
        """Those of the tokens forced by the grammar that may be taken: all, or none where that would cost too much."""
        return tokens if tokens and self._follow(tokens, left) else []

    def _follow(self, tokens: list[int], left: int) -> bool:
        """Move on by `tokens`; not where a plan fits now and none is found that fits after them."""
        text = self._closer.decode(tokens)
        begins = left <= FAR and (len(tokens) > 1 or self._begins(text))
        if self._plan is None and (left <= self._due or begins):
            self._look(left)
        if self._plan is not None:
            spare, rest = left - self._plan.size, left - len(tokens)
            plan = self._plan.tail(len(text)) if self._plan.text.startswith(text) else None
            if plan is None and (spare <= self._near or begins):
                plan = self._kept(self._plan, tokens)
            if plan is None or plan.size > rest:
                if spare > self._near and not begins:
                    plan, self._due = None, left - (spare - self._near) // 4 - 1
                elif (plan := self._found(tokens, text)) is None or plan.size > rest:
                    return False
            self._plan = plan
        self._place = self._place.after(text)
        return True

    def _begins(self, text: bytes) -> bool:
        """Whether something may begin in `text` that costs more than a token or two to end."""
        place = self._place
        for byte in text:
            if byte in BEGINNINGS and not place.quoted:
                return True
            place = place.next(byte)
        return False

    def _look(self, left: int) -> None:
        """Find a plan for the present state."""
        plan = self._closer.plan(self._matcher, self._place, self._samples)
        self.lost = plan is None or plan.size > left
        self._plan = None if self.lost else plan
        self._due = left // 2

    def _kept(self, plan: Plan, tokens: list[int]) -> Plan | None:
        """What of the plan still holds after `tokens`, without a search."""
        matcher = self._matcher.deep_copy()
        for start, ids in reversed(self._closer.tails(plan, TAILS)):
            if matcher.validate_tokens(tokens + ids) == len(tokens) + len(ids):
                return plan.tail(start)
        return None

    def _found(self, tokens: list[int], text: bytes) -> Plan | None:
        matcher = self._matcher.deep_copy()
        matcher.consume_tokens(tokens)
        return self._closer.plan(matcher, self._place.after(text), self._samples, self._plan)
