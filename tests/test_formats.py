"""models/schema/formats.py: formats as patterns, held against Python's own readers and a second validator."""

import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from datetime import date, datetime, time
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from models.schema.formats import PATTERNS

CHECKER = Draft202012Validator.FORMAT_CHECKER
# What we are stricter about than these two are both able to tell.
TOLD = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uri-reference", "uuid"]
TOLD += ["iri", "iri-reference", "json-pointer", "relative-json-pointer", "uri-template"]


# Signs of every sort, and few enough to be quick.
SIGNS = "".join(map(chr, range(32, 127))) + "\u00e9\ud7ff\U00010000"


def fits(name: str, text: str) -> bool:
    pattern, longest = PATTERNS[name]
    return re.search(pattern[:-1] + r"\Z", text) is not None and (longest is None or len(text) <= longest)


def fitting(name: str) -> st.SearchStrategy[str]:
    if name.startswith("iri"):  # whose classes are too large to be drawn from
        return fitting(name.replace("iri", "uri")).map(lambda text: text.replace("~", "\u00e9\U00010000"))
    return st.from_regex(PATTERNS[name][0], fullmatch=True, alphabet=SIGNS)


@pytest.mark.parametrize("name", TOLD)
def test_whatever_fits_is_right_to_two_others(name: str) -> None:
    second = jsonschema_rs.validator_for({"format": name}, validate_formats=True)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(text=fitting(name), at=st.integers(0, 60), other=st.sampled_from(["", *SIGNS]))
    def check(text: str, at: int, other: str) -> None:
        assert fits(name, text) or len(text) > (PATTERNS[name][1] or 0)
        for near in (text, text[:at] + other + text[at:], text[:at] + other + text[at + 1 :]):
            if fits(name, near):
                assert second.is_valid(near)
                assert CHECKER.conforms(near, name)

    check()


@pytest.mark.parametrize("name", sorted(PATTERNS))
@settings(max_examples=6, deadline=None)
@given(data=st.data(), junk=st.text(SIGNS, max_size=5))
def test_a_pattern_says_the_same_to_two_engines(name: str, data: st.DataObject, junk: str) -> None:
    rust = jsonschema_rs.validator_for({"pattern": PATTERNS[name][0]}, pattern_options=jsonschema_rs.RegexOptions())
    for text in (junk, data.draw(fitting(name))):
        assert rust.is_valid(text) == (re.search(PATTERNS[name][0][:-1] + r"\Z", text) is not None)


@given(data=st.binary(max_size=9), text=st.text("aZ9+/-_=", max_size=6))
def test_bytes_as_text(data: bytes, text: str) -> None:
    for name in ("byte", "base64"):
        assert fits(name, b64encode(data).decode())
        assert not fits(name, text) or b64decode(text, validate=True) is not None
    for url in (urlsafe_b64encode(data).decode(), urlsafe_b64encode(data).decode().rstrip("=")):
        assert fits("base64url", url)


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
        ("date", ["2024-02-29", "2000-02-29"], ["2023-02-29", "1900-02-29", "2024-04-31", "0000-01-01"]),
        ("time", ["23:59:59Z", "00:00:00.5-08:30"], ["24:00:00Z", "23:59:60Z", "12:00:00", "1:00:00Z"]),
        ("date-time", ["1963-06-19t08:30:06.283185z"], ["1990-02-31T15:59:59Z", "1990-02-01 15:59:59Z"]),
        ("duration", ["P4DT12H30M5S", "PT1M", "P2W"], ["P", "PT", "P1YT", "4D", "P1D2H", "P1Y2W"]),
        ("email", ["a.b+c@example.com", "a@b"], ["a..b@c", ".a@b", "a@-b", "a b@c", "a@b_c", "@b", f"{'a' * 65}@b"]),
        ("hostname", ["a", "a-b.example.com", "1.2"], ["-a", "a-", "a..b", "a_b", "x" * 64, "ab--c", f"{'a.' * 130}a"]),
        (
            "ipv6",
            ["::", "::1", "1::", "::ffff:192.168.0.1", "1:2:3:4:5:6:7:8"],
            [":", "1:2:3:4:5:6:7::8", "1::2::3", "12345::", "1:2", "::1%0"],
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
