"""models/schema/formats.py: formats as patterns, held against Python's own readers and a second validator."""

import re
from datetime import date, datetime, time
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from models.schema.formats import PATTERNS

CHECKER = Draft202012Validator.FORMAT_CHECKER
# What we are stricter about than these two are both able to tell.
TOLD = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uri-reference", "uuid"]
TOLD += ["iri", "iri-reference", "json-pointer", "relative-json-pointer", "uri-template"]


def fits(name: str, text: str) -> bool:
    pattern, longest = PATTERNS[name]
    return re.search(pattern[:-1] + r"\Z", text) is not None and (longest is None or len(text) <= longest)


@pytest.mark.parametrize("name", TOLD)
def test_whatever_fits_is_right_to_two_others(name: str) -> None:
    second = jsonschema_rs.validator_for({"format": name}, validate_formats=True)

    @settings(max_examples=150, deadline=None)
    @given(
        text=st.from_regex(
            PATTERNS[name][0].replace("$", r"\Z") if name == "date" else PATTERNS[name][0], fullmatch=True
        )
    )
    def check(text: str) -> None:
        if fits(name, text):
            assert second.is_valid(text)
            assert CHECKER.conforms(text, name)

    check()


@given(day=st.dates(), at=st.times(), address=st.ip_addresses(), name=st.uuids())
def test_what_python_writes_fits(day: date, at: time, address: IPv4Address | IPv6Address, name: UUID) -> None:
    assert fits("date", day.isoformat())
    assert fits("time", f"{at.isoformat()}Z")
    assert fits("date-time", f"{datetime.combine(day, at).isoformat()}+01:00")
    assert fits(f"ipv{address.version}", str(address))
    assert fits("uuid", str(name))


@given(year=st.integers(0, 9999), month=st.integers(0, 13), day=st.integers(0, 32))
def test_a_date_is_one_that_exists(year: int, month: int, day: int) -> None:
    try:
        date(year, month, day)
        exists = True
    except ValueError:
        exists = False
    assert fits("date", f"{year:04}-{month:02}-{day:02}") == exists


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("time", ["23:59:59Z", "00:00:00.5-08:30"], ["24:00:00Z", "23:59:60Z", "12:00:00", "1:00:00Z"]),
        ("date-time", ["1963-06-19t08:30:06.283185z"], ["1990-02-31T15:59:59Z", "1990-02-01 15:59:59Z"]),
        ("duration", ["P4DT12H30M5S", "PT1M", "P2W"], ["P", "PT", "P1YT", "4D", "P1D2H", "P1Y2W"]),
        ("email", ["a.b+c@example.com", "a@b"], ["a..b@c", ".a@b", "a@-b", "a b@c", "a@b_c", "@b", f"{'a' * 65}@b"]),
        ("hostname", ["a", "a-b.example.com", "1.2"], ["-a", "a-", "a..b", "a_b", "x" * 64, "ab--c", f"{'a.' * 130}a"]),
        (
            "ipv6",
            ["::", "::1", "1::", "::ffff:192.168.0.1", "1:2:3:4:5:6:7:8"],
            [":", "1::2::3", "12345::", "1:2", "::1%0"],
        ),
        ("uri", ["http://a/b?c#d", "mailto:a@b", "urn:x:y"], ["//a/b", "a b:c", "http://a b", "/x", "http://[::1]/"]),
        ("uri-reference", ["//a/b", "/x", "", "#a", "a:b"], ["\\\\a", "a b", "%zz"]),
        ("uri-template", ["/{a}/{?b,c*}", "x{d:3}"], ["{", "{a", "}", "{a b}", "<"]),
        ("json-pointer", ["", "/a~0b/0"], ["a", "/~", "/~2"]),
        ("relative-json-pointer", ["0", "1/a", "2#"], ["-1", "01", "a", "1#/a"]),
        ("uuid4", ["2eb8aa08-aa98-41ea-b4aa-73b441d16380"], ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"]),
        ("byte", ["", "YQ==", "YWI=", "YWJj"], ["YQ", "Y===", "YQ=="[:3], "-_=="]),
        ("base64url", ["YQ", "YQ==", "-_-_"], ["+/==", "Y"]),
    ],
)
def test_what_fits_and_what_does_not(name: str, good: list[str], bad: list[str]) -> None:
    assert [fits(name, text) for text in good + bad] == [True] * len(good) + [False] * len(bad)
