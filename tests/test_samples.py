"""models/schema/samples.py: what a pattern takes, by the engine that judges answers."""

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.schema.patterns import bounded, portable
from models.schema.samples import LONGEST, MOST, sample_of, samples
from tests.test_patterns import patterns


def takes(pattern: str, text: str) -> bool:
    return jsonschema_rs.is_valid({"pattern": pattern}, text, pattern_options=jsonschema_rs.RegexOptions())


@pytest.mark.parametrize(
    ("pattern", "sample"),
    [
        ("request", "request"),
        (r"^\d{4}-\d{2}$", "0000-00"),
        ("^(foo|ba|quux)+$", "ba"),
        ("^[^@]+@[^@]+\\.[a-z]{2,}$", "a@a.aa"),
        ("^(?:|x)$", ""),
        ("^a{3}b*c?[xyz]+$", "aaaz"),
        ("^[\u4e00-\u9fff]$", "\u4e00"),
        ("^((a|b)(c|dd))?$", ""),
        ("^(a|(b|cc)d)$", "a"),
        ("^\\p{Lu}$", "A"),
    ],
)
def test_the_shortest_text_of_a_pattern(pattern: str, sample: str) -> None:
    assert (made := portable(pattern)) is not None
    assert sample_of(made) == sample


@settings(max_examples=300, deadline=None)
@given(parts=patterns, anchored=st.booleans(), least=st.integers(0, 30))
@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_a_sample_fits_its_pattern(parts: list[str], anchored: bool, least: int) -> None:
    pattern = "".join(parts)
    made = portable(f"^{pattern}$" if anchored else pattern)
    if made is None or (sample := sample_of(made, least)) is None:
        return
    assert takes(made, sample), (made, sample)
    if not anchored:
        assert len(sample) >= least


@pytest.mark.parametrize("least", [0, 1, 9, 100])
def test_a_sample_is_as_long_as_it_must_be(least: int) -> None:
    for pattern in ("^[a-z]*@[a-z]+$", "x", "^a{2,}(bc)*$", "^.{0,100}$"):
        sample = sample_of(bounded(pattern, 2000), least)
        assert sample is not None and takes(pattern, sample)
        assert len(sample) >= least


def test_the_samples_of_a_schema_stand_as_in_json() -> None:
    schema = {
        "properties": {"a": {"pattern": '^"$'}, "b": {"anyOf": [{"pattern": "^é{2}$", "minLength": 1}]}},
        "$defs": {"s": {"pattern": "^x{3}$", "minLength": "odd"}},
        "enum": [{"pattern": 1}],
    }
    assert samples(schema) == (b'\\"', "éé".encode(), b"xxx")


def test_neither_samples_nor_their_number_grow_without_end() -> None:
    assert sample_of(f"^a{{{LONGEST + 1}}}$") in (None, "a" * LONGEST)
    assert sample_of("^(?:a{200}){3}$") is None
    many = {"anyOf": [{"pattern": f"^{'a' * number}$"} for number in range(200)]}
    assert len(samples(many)) == MOST
