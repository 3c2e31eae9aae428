"""models/engine/cache.py: exact books, what begins alike is shared, and nothing in use is ever given away."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.cache import BLOCK, Cache

BLOCKS = 16


def cache(blocks: int = BLOCKS, dtype: torch.dtype = torch.float32) -> Cache:
    return Cache(1, 1, 1, dtype, torch.device("cpu"), blocks * BLOCK)


def text(*words: int) -> list[int]:
    """Ids of one block for each word, and one more: the last token is never shared."""
    return [word for word in words for _ in range(BLOCK)] + [0]


def writer(books: Cache, ids: list[int]) -> int:
    return books.find(ids)[2]


def put(books: Cache, number: int, ids: list[int]) -> int:
    """Open and compute all of it; how many tokens were there."""
    known = books.open(number, ids, 0)
    books.fill(number, ids, len(ids))
    return known


def test_the_memory_is_taken_at_once_and_in_whole_blocks() -> None:
    books = Cache(3, 2, 4, torch.bfloat16, torch.device("cpu"), 5 * BLOCK + 7)
    assert books.budget == 5 * BLOCK
    assert books.pool.nbytes == books.budget * books.bytes_per_token == 5 * BLOCK * 3 * 2 * 2 * 4 * 2


def test_a_beginning_is_shared_down_to_one_block() -> None:
    books = cache()
    assert put(books, 1, text(1, 2, 3)) == 0
    assert put(books, 2, text(1, 2, 4)) == 2 * BLOCK
    assert put(books, 3, text(1, 5)) == BLOCK
    assert put(books, 4, text(6, 2, 3)) == 0
    assert books.table(1)[:2] == books.table(2)[:2]
    assert books.table(3)[0] == books.table(1)[0]
    assert books.tokens()["used"] == (4 + 2 + 2 + 4) * BLOCK
    assert books.tokens()["shared"] == 2 * BLOCK


def test_the_last_token_is_always_computed() -> None:
    books = cache()
    ids = text(1, 2)[:-1]
    put(books, 1, ids)
    assert put(books, 2, ids) == BLOCK
    assert put(books, 3, [*ids, 9]) == 2 * BLOCK


@pytest.mark.parametrize(
    ("reusable", "known"), [(None, 3), (3 * BLOCK, 3), (3 * BLOCK - 1, 2), (2 * BLOCK, 2), (BLOCK, 1), (5, 0), (0, 0)]
)
def test_what_comes_after_the_reusable_tokens_is_computed_anew(reusable: int | None, known: int) -> None:
    """In blocks of its own, which nobody else finds or writes; what others have computed stays theirs."""
    books = cache()
    ids = text(1, 2, 3)
    put(books, 1, ids)
    assert books.open(2, ids, 0, reusable) == known * BLOCK
    assert books.table(2)[:known] == books.table(1)[:known]
    assert not set(books.table(2)[known:]) & set(books.table(1))
    assert writer(books, ids) == 0
    books.fill(2, ids, len(ids))
    books.close(2)
    assert books.find(ids)[:2] == (3, 0)
    assert books.used == 4 * BLOCK
    books.close(1)
    assert put(books, 3, ids) == 3 * BLOCK


def test_what_is_computed_anew_is_for_others_where_nobody_had_it() -> None:
    books = cache()
    ids = text(1, 2, 3)
    assert books.open(1, ids, 0, 5) == 0
    assert writer(books, ids) == 1
    books.fill(1, ids, len(ids))
    assert put(books, 2, ids) == 3 * BLOCK


def test_what_is_being_computed_is_known_by_its_writer() -> None:
    books = cache()
    ids = text(1, 2, 3)
    books.open(1, ids, 0)
    assert writer(books, ids) == writer(books, text(1, 9)) == 1
    assert writer(books, text(2)) == 0
    books.fill(1, ids, BLOCK)
    assert writer(books, text(1, 9)) == 0
    assert writer(books, ids) == 1
    books.fill(1, ids, len(ids))
    assert writer(books, ids) == 0
    assert put(books, 2, ids) == 3 * BLOCK


def test_a_writer_that_leaves_takes_what_it_had_not_computed_along() -> None:
    books = cache()
    ids = text(1, 2, 3)
    books.open(1, ids, 0)
    books.fill(1, ids, 2 * BLOCK)
    books.close(1)
    assert writer(books, ids) == 0
    assert books.find(ids)[:2] == (2, 2)
    assert books.tokens()["free"] == (BLOCKS - 2) * BLOCK
    assert put(books, 2, ids) == 2 * BLOCK


def test_answers_are_shared_as_well() -> None:
    books = cache()
    ids = text(1)
    put(books, 1, ids)
    longer = [*ids, *range(100, 100 + BLOCK)]
    assert books.extend(1, len(longer))
    books.fill(1, longer, len(longer))
    books.close(1)
    assert put(books, 2, [*longer, 5, 6, 7]) == 2 * BLOCK


def test_two_that_say_the_same_keep_a_copy_each() -> None:
    books = cache()
    ids = text(1)
    put(books, 1, ids)
    put(books, 2, ids)
    longer = [*ids, *[7] * 2 * BLOCK]
    for number in (1, 2):
        assert books.extend(number, len(longer))
        books.fill(number, longer, len(longer))
    assert books.table(1)[0] == books.table(2)[0]
    assert not set(books.table(1)[1:]) & set(books.table(2)[1:])
    books.close(1)
    books.close(2)
    assert books.used == 0
    assert books.find([*longer, 1])[:2] == (3, 3)


def test_the_least_recently_used_goes_first_and_from_its_end() -> None:
    books = cache(8)
    for number in (1, 2):
        put(books, number, text(number, 10 + number)[:-1])
        books.close(number)
    assert books.find(text(1, 11))[:2] == books.find(text(2, 12))[:2] == (2, 2)
    books.open(3, [5] * 5 * BLOCK, 0)
    assert books.find(text(1, 11))[:2] == (1, 1)
    assert books.find(text(2, 12))[:2] == (2, 2)
    assert books.extend(3, 6 * BLOCK)
    assert books.find(text(1, 11))[:2] == (0, 0)
    assert not books.extend(3, 9 * BLOCK)


def test_what_several_have_used_stays_when_a_flood_of_others_passes() -> None:
    books = cache(16)
    put(books, 1, text(1, 2, 100))
    put(books, 2, text(1, 2, 200))
    books.close(1)
    books.close(2)
    assert books.tokens()["pinned"] == 2 * BLOCK
    for number in range(3, 60):
        put(books, number, text(number, number, number))
        books.close(number)
    assert books.find(text(1, 2, 3))[:2] == (2, 2)
    assert books.find(text(3, 3))[:2] == (0, 0)


def test_what_is_kept_for_good_is_bounded_and_gives_way_to_rows() -> None:
    books = cache(16)
    for word in range(10):
        for number in (1, 2):
            put(books, number, text(word, number))
        books.close(1)
        books.close(2)
    assert books.tokens()["pinned"] == 4 * BLOCK
    assert [books.find(text(word))[0] for word in range(10)] == [0] * 2 + [1] * 8 or books.find(text(9))[0] == 1
    books.open(1, [77] * 16 * BLOCK, 0)
    assert books.tokens() == {"used": 16 * BLOCK, "shared": 0, "pinned": 0, "evictable": 0, "free": 0}


def test_blocks_lie_side_by_side_where_they_can() -> None:
    books = cache(16)
    books.open(1, [1] * 3 * BLOCK, 3)
    books.open(2, [2] * 2 * BLOCK, 0)
    assert books.extend(1, 4 * BLOCK)
    first = books.table(1)[0]
    assert books.table(1) == list(range(first, first + 4)) or books.table(1)[:3] == list(range(first, first + 3))
    books.close(2)
    books.close(1)
    books.open(3, [3] * 16 * BLOCK, 0)
    assert books.table(3) == list(range(16))


def test_what_is_not_sound_is_found_by_nobody_again() -> None:
    books = cache()
    put(books, 1, text(1, 2, 3))
    put(books, 2, text(1, 2, 4))
    books.close(2, sound=False)
    assert books.find(text(1, 2, 3))[:2] == (0, 0)
    assert put(books, 3, text(1, 2, 5)) == 0
    books.close(1)
    books.close(3)
    assert books.find(text(1, 2, 5))[:2] == (3, 3)
    assert books.used == 0
    books.open(4, [9] * BLOCKS * BLOCK, 0)  # all the room is there


def test_a_sequence_has_its_blocks_once_and_closing_twice_is_harmless() -> None:
    books = cache()
    books.open(1, text(1), 0)
    with pytest.raises(AssertionError):
        books.open(1, text(1), 0)
    books.close(1)
    books.close(1)
    books.close(99)
    assert books.available() == BLOCKS


ACTIONS = st.lists(st.tuples(st.sampled_from("oefc"), st.integers(1, 6), st.integers(0, 2**30)), max_size=120)


@settings(deadline=None, max_examples=300)
@given(ACTIONS)
def test_whatever_happens_nobody_reads_what_another_wrote(actions: list[tuple[str, int, int]]) -> None:
    """A model of the pool beside it: each slot holds the tokens that led to it; every reader finds its own."""
    books = cache()
    pool: dict[int, tuple[int, ...]] = {}
    rows: dict[int, list[int]] = {}
    done: dict[int, int] = {}
    for action, number, seed in actions:
        rng = random.Random(seed)
        if action == "o" and number not in rows:
            ids = [rng.choice([1, 2]) for _ in range(rng.randint(0, 3)) for _ in range(BLOCK)]
            ids += [rng.randint(3, 5) for _ in range(rng.randint(1, 30))]
            reusable = rng.randrange(len(ids))
            known, idle, busy = books.find(ids[: reusable + 1])
            if busy or -(-len(ids) // BLOCK) - known + idle > books.available():
                continue
            done[number] = books.open(number, ids, rng.randint(0, 2), reusable)
            assert done[number] == known * BLOCK < len(ids)
            rows[number] = ids
        elif action == "e" and number in rows:
            more = [rng.randint(3, 5) for _ in range(rng.randint(1, 20))]
            if books.extend(number, len(rows[number]) + len(more)):
                rows[number] = rows[number] + more
            else:
                assert -(-(len(rows[number]) + len(more)) // BLOCK) - len(books.table(number)) > books.available()
        elif action == "f" and number in rows:
            ids, table = rows[number], books.table(number)
            end = rng.randint(done[number], len(ids))
            for at in range(done[number], end):
                pool[table[at // BLOCK] * BLOCK + at % BLOCK] = tuple(ids[: at + 1])
            books.fill(number, ids, end)
            done[number] = end
        elif action == "c":
            books.close(number, sound=seed % 4 > 0)
            rows.pop(number, None)
        for other, ids in rows.items():
            table = books.table(other)
            assert len(table) == len(set(table)) >= -(-len(ids) // BLOCK)
            for at in range(done[other]):
                assert pool[table[at // BLOCK] * BLOCK + at % BLOCK] == tuple(ids[: at + 1])
        counted = books.tokens()
        held = [block for other in rows for block in books.table(other)]
        assert counted["used"] == len(set(held)) * BLOCK
        assert counted["shared"] == sum(held.count(block) > 1 for block in set(held)) * BLOCK
        assert counted["used"] + counted["pinned"] + counted["evictable"] + counted["free"] == books.budget
        assert counted["pinned"] <= books.budget // 4
    for number in list(rows):
        books.close(number)
    assert books.used == 0 and books.available() == BLOCKS
