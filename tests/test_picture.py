"""models/picture.py: what stands for a picture in a prompt, and at which positions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from models.picture import Picture, Shown, locate, positions
from tests import seeing

SIDES = st.integers(1, 5)
PICTURES = st.lists(st.builds(seeing.picture, SIDES, SIDES, st.integers(0, 3)), max_size=3)


@pytest.fixture(scope="module")
def network() -> Qwen2_5_VLForConditionalGeneration:
    return seeing.network(200)


def prompt(pictures: list[Picture], texts: list[int]) -> list[int]:
    """Text of these lengths around the pictures."""
    ids = [5] * texts[0]
    for picture, length in zip(pictures, texts[1:], strict=False):
        ids += picture.ids + [6] * length
    return ids


def test_a_picture_counts_its_squares() -> None:
    picture = seeing.picture(2, 3)
    assert (picture.rows, picture.columns, picture.tokens, picture.length) == (2, 3, 6, 3)
    assert picture.ids == [picture.id] * 6


def test_equal_pictures_have_one_id_and_others_have_others() -> None:
    first, again, other = seeing.picture(2, 3, 1), seeing.picture(2, 3, 1), seeing.picture(2, 3, 2)
    assert first.id == again.id != other.id
    assert first.id < 0 and other.id < 0
    turned = Picture(first.pixels.reshape(84, 56, 3), 28)
    assert turned.pixels.tobytes() == first.pixels.tobytes()
    assert len({first.id, turned.id, Picture(first.pixels, 14).id}) == 3
    changed = first.pixels.copy()
    changed[-1, -1, -1] ^= 1
    assert Picture(changed, 28).id != first.id


def test_pictures_are_found_where_they_stand() -> None:
    a, b = seeing.picture(2, 3, 1), seeing.picture(1, 1, 2)
    ids = [7, *a.ids, 8, 9, *b.ids, *b.ids, 7]
    assert locate(ids, [a, b, b]) == [Shown(a, 1, 1), Shown(b, 9, 6), Shown(b, 10, 7)]


@pytest.mark.parametrize("change", ["missing", "cut", "other", "more", "order"])
def test_a_prompt_that_holds_other_pictures_is_refused(change: str) -> None:
    a, b = seeing.picture(2, 3, 1), seeing.picture(1, 2, 2)
    ids, pictures = {
        "missing": ([5, 6], [a]),
        "cut": ([5, *a.ids[:-1], 6], [a]),
        "other": ([5, *b.ids, 6], [a]),
        "more": ([5, *a.ids, *a.ids], [a]),
        "order": ([5, *a.ids, 6, *b.ids], [b, a]),
    }[change]
    with pytest.raises(ValueError, match="the prompt"):
        locate(ids, pictures)


@given(PICTURES, st.lists(st.integers(1, 4), min_size=4, max_size=4), st.data())
def test_positions_are_those_of_transformers(
    network: Qwen2_5_VLForConditionalGeneration, pictures: list[Picture], texts: list[int], data: st.DataObject
) -> None:
    ids = prompt(pictures, texts)
    kinds = torch.tensor([[int(token < 0) for token in ids]])
    grids = torch.tensor([[1, 2 * each.rows, 2 * each.columns] for each in pictures]).view(-1, 3)
    theirs, delta = network.model.get_rope_index(torch.zeros_like(kinds), kinds, grids)
    expected = [tuple(each) for each in theirs[:, 0].T.tolist()]
    expected += [(at + int(delta),) * 3 for at in range(len(ids), len(ids) + 6)]  # of the answer
    shown = locate(ids, pictures)
    assert list(positions(shown, 0, len(expected))) == expected
    start = data.draw(st.integers(0, len(expected)))
    end = data.draw(st.integers(start, len(expected)))
    assert list(positions(shown, start, end)) == expected[start:end]


def test_pixels_are_left_alone() -> None:
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels.flags.writeable = False
    assert Picture(pixels, 28).tokens == 1
