"""Formats of strings as patterns, strict enough for any checker and no wider than documents need.

Dates exist, seconds do not leap, hosts are names and not numbers in brackets. Knows nothing of schemas.
"""

# Any string is a password, or the path of a file; these say what a string is for, not what it looks like.
FREE = {"password", "binary", "path", "file-path", "directory-path"}

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_FOURTHS = r"(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_FOURTHS}|{_FOURTHS}00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,15})?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_COUNT = "[0-9]{1,9}"
_CLOCK = rf"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"
_DAYS = rf"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"

_HEX = "[0-9A-Fa-f]"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_GROUP = f"{_HEX}{{1,4}}"
_LAST = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"  # 32 bits
_IPV6 = "|".join(
    [
        f"(?:{_GROUP}:){{6}}{_LAST}",
        f"::(?:{_GROUP}:){{5}}{_LAST}",
        *(f"(?:(?:{_GROUP}:){{0,{n}}}{_GROUP})?::(?:{_GROUP}:){{{4 - n}}}{_LAST}" for n in range(5)),
        f"(?:(?:{_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
        f"(?:(?:{_GROUP}:){{0,6}}{_GROUP})?::",
    ]
)

_ALNUM = "[0-9A-Za-z]"
_LDH = "[0-9A-Za-z-]"
# No label has hyphens as its third and fourth character, as those of other alphabets have.
_LABEL = (
    f"(?:{_ALNUM}|{_ALNUM}{_ALNUM}|{_ALNUM}{_LDH}{_ALNUM}|{_ALNUM}{_LDH}(?:{_ALNUM}{_ALNUM}|-{_ALNUM})"
    f"|{_ALNUM}{_LDH}(?:{_ALNUM}{_LDH}|-{_ALNUM}){_LDH}{{0,58}}{_ALNUM})"
)
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = "[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]"
# At most 64 characters may stand before the @; so no more than 32 that are no dots.
_EMAIL = rf"{_ATOM}(?:\.?{_ATOM}){{0,31}}@{_HOST}"

_PERCENT = f"%{_HEX}{{2}}"
_FAR = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0003fffd"


def _reference(far: str) -> tuple[str, str]:
    """An absolute and a relative reference (RFC 3986), with these characters beyond ASCII (RFC 3987)."""
    plain = f"0-9A-Za-z._~!$&'()*+,;={far}-"
    part = f"(?:[:@{plain}]|{_PERCENT})"
    first = f"(?:[@{plain}]|{_PERCENT})"  # of a relative one: a colon would end a scheme
    host = f"(?:[{plain}]|{_PERCENT})*"
    authority = f"//(?:(?:[:{plain}]|{_PERCENT})*@)?{host}(?::[0-9]*)?(?:/{part}*)*"
    rooted = f"/(?:{part}+(?:/{part}*)*)?"
    tail = rf"(?:\?(?:{part}|[/?])*)?(?:#(?:{part}|[/?])*)?"
    absolute = f"[A-Za-z][0-9A-Za-z+.-]*:(?:{authority}|{rooted}|{part}+(?:/{part}*)*)?{tail}"
    return absolute, f"(?:{authority}|{rooted}|{first}+(?:/{part}*)*)?{tail}"


_URI, _RELATIVE = _reference("")
_IRI, _RELATIVE_IRI = _reference(_FAR)
_VARIABLE = rf"(?:[0-9A-Za-z_]|{_PERCENT})(?:\.?(?:[0-9A-Za-z_]|{_PERCENT}))*(?:\*|:[1-9][0-9]{{0,3}})?"
_TEMPLATE = rf"(?:[^\x00-\x20\"%<>\\^`{{|}}\x7f]|{_PERCENT}|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_BASE64 = "(?:[0-9A-Za-z+/]{4})*(?:[0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-{{}}-{_HEX}{{4}}-{_HEX}{{12}}"

# What must fit, and the most characters where there may not be as many as fit.
PATTERNS: dict[str, tuple[str, int | None]] = {
    name: (f"^(?:{pattern})$", longest)
    for name, pattern, longest in [
        ("date", _DATE, None),
        ("time", _TIME, None),
        ("date-time", f"{_DATE}[tT]{_TIME}", None),
        ("duration", f"P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK}|{_COUNT}W)", None),
        ("email", _EMAIL, 254),
        ("hostname", _HOST, 253),
        ("ipv4", _IPV4, None),
        ("ipv6", _IPV6, None),
        ("uri", _URI, None),
        ("url", _URI, None),
        ("uri-reference", f"{_URI}|{_RELATIVE}", None),
        ("iri", _IRI, None),
        ("iri-reference", f"{_IRI}|{_RELATIVE_IRI}", None),
        ("uri-template", _TEMPLATE, None),
        ("json-pointer", _POINTER, None),
        ("relative-json-pointer", f"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})", None),
        ("uuid", _UUID.replace("{}", f"{_HEX}{{4}}"), None),
        *((f"uuid{version}", _UUID.replace("{}", f"{version}{_HEX}{{3}}"), None) for version in range(1, 9)),
        ("byte", _BASE64, None),
        ("base64", _BASE64, None),
        ("base64url", "(?:[0-9A-Za-z_-]{4})*(?:[0-9A-Za-z_-]{2}(?:==)?|[0-9A-Za-z_-]{3}=?)?", None),
    ]
}

# Formats of numbers by OpenAPI; others than these say nothing about a number.
INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**53 - 1),
}
