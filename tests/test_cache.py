"""models/engine/cache.py: exact books, and every key and value where it was put."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.cache import Cache

LAYERS, HEADS, DIM, BUDGET = 3, 2, 4, 64


def cache(dtype: torch.dtype = torch.float32, budget: int = BUDGET) -> Cache:
    return Cache(LAYERS, HEADS, DIM, dtype, torch.device("cpu"), budget)


def test_room_is_reserved_to_the_last_token() -> None:
    books = cache()
    books.reserve(1, 60)
    assert books.reserved == 60
    assert books.fits(4)
    assert not books.fits(5)
    books.reserve(2, 4)
    assert books.reserved == BUDGET
    assert not books.fits(1)


def test_nothing_is_reserved_beyond_the_budget_or_twice() -> None:
    books = cache()
    with pytest.raises(AssertionError):
        books.reserve(1, BUDGET + 1)
    books.reserve(1, 8)
    with pytest.raises(AssertionError):
        books.reserve(1, 8)
    assert books.reserved == 8


def test_free_gives_back_once() -> None:
    books = cache()
    books.reserve(1, 10)
    books.reserve(2, 20)
    books.free(1)
    books.free(1)
    books.free(99)
    assert books.reserved == 20
    books.reserve(1, 44)
    assert books.reserved == BUDGET


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_are_those_of_a_slab(dtype: torch.dtype) -> None:
    books = cache(dtype)
    books.reserve(1, 10)
    per_layer = torch.zeros(HEADS, 10, DIM, dtype=dtype)
    keys, values = books.extend(1, 0, 0, per_layer, per_layer)
    assert keys.dtype == values.dtype == dtype
    held = (keys.numel() * keys.itemsize + values.numel() * values.itemsize) * LAYERS
    assert held == 10 * books.bytes_per_token


def test_extend_gives_back_all_that_was_written_so_far() -> None:
    books = cache()
    books.reserve(1, 10)
    books.reserve(2, 10)
    written = torch.randn(2, LAYERS, HEADS, 10, DIM)
    for start, end in [(0, 4), (4, 5), (5, 9)]:
        for layer in range(LAYERS):
            # A neighbour writes other things at the same places.
            books.extend(2, layer, start, *torch.randn(2, HEADS, end - start, DIM))
            keys, values = books.extend(1, layer, start, *written[:, layer, :, start:end])
            assert torch.equal(keys, written[0, layer, :, :end])
            assert torch.equal(values, written[1, layer, :, :end])


def test_places_that_do_not_lie_side_by_side_serve_as_well() -> None:
    """Every other sequence leaves, and one that is larger than any hole comes."""
    books = cache()
    for number in range(8):
        books.reserve(number, 8)
    kept = {number: torch.randn(2, LAYERS, HEADS, 8, DIM) for number in (0, 2, 4, 6)}
    for number, written in kept.items():
        for layer in range(LAYERS):
            books.extend(number, layer, 0, *written[:, layer])
    for number in (1, 3, 5, 7):
        books.free(number)
    books.reserve(9, 30)
    written = torch.randn(2, LAYERS, HEADS, 30, DIM)
    for start, end in [(0, 7), (7, 8), (8, 30)]:
        for layer in range(LAYERS):
            keys, values = books.extend(9, layer, start, *written[:, layer, :, start:end])
            assert torch.equal(keys, written[0, layer, :, :end])
            assert torch.equal(values, written[1, layer, :, :end])
    for number, theirs in kept.items():
        for layer in range(LAYERS):
            keys, values = books.extend(number, layer, 7, *theirs[:, layer, :, 7:])
            assert torch.equal(keys, theirs[0, layer])
            assert torch.equal(values, theirs[1, layer])
    assert not books.fits(3)
    books.free(9)
    assert books.reserved == 32


def test_the_memory_is_taken_at_once_and_no_more_later() -> None:
    books = cache(budget=1000)
    before = books._pool.untyped_storage().data_ptr()
    assert books._pool.nbytes == 1000 * books.bytes_per_token
    books.reserve(1, 600)
    keys, _ = books.extend(1, 0, 0, *torch.zeros(2, HEADS, 600, DIM))
    assert keys.untyped_storage().data_ptr() == before


OPERATIONS = st.tuples(
    st.sampled_from(["reserve", "free", "fill"]), st.integers(0, 5), st.integers(1, 40), st.integers(0, LAYERS - 1)
)


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=60))
def test_the_books_agree_with_a_dict_whatever_happens(operations: list[tuple[str, int, int, int]]) -> None:
    books = cache()
    held: dict[int, int] = {}
    for name, number, tokens, layer in operations:
        assert books.fits(tokens) == (sum(held.values()) + tokens <= BUDGET)
        if name == "free":
            books.free(number)
            held.pop(number, None)
        elif name == "reserve" and books.fits(tokens) and number not in held:
            books.reserve(number, tokens)
            held[number] = tokens
        elif name == "fill" and number in held:
            filling = torch.full((HEADS, held[number], DIM), float(number))
            keys, values = books.extend(number, layer, 0, filling, -filling)
            assert torch.equal(keys, filling)
            assert torch.equal(values, -filling)
        assert books.reserved == sum(held.values()) <= BUDGET
