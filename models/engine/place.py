"""Where in a JSON text we are, byte by byte. Knows only brackets, strings and escapes."""

from typing import NamedTuple

QUOTE, BACKSLASH, BLANK = b'"\\ '


class Place(NamedTuple):
    """Where in a JSON text we are: open brackets, last byte outside of strings, in a string, after a backslash; and
    of the name of a property, what is written."""

    open: bytes = b""
    last: int = b","[0]
    quoted: bool = False
    escaped: bool = False
    name: bytes = b""

    def after(self, text: bytes) -> "Place":
        place = self
        for byte in text:
            place = place.next(byte)
        return place

    def next(self, byte: int) -> "Place":
        if self.quoted:
            ends = byte == QUOTE and not self.escaped
            name = self.name + bytes([byte]) if self.named else b""
            return Place(
                self.open, QUOTE if ends else self.last, not ends, byte == BACKSLASH and not self.escaped, name
            )
        if byte == QUOTE:
            return Place(self.open, self.last, True)
        if byte == BLANK:  # before an answer begins
            return self
        if byte in b"{[":
            return Place(self.open + bytes([byte]), byte)
        return Place(self.open[:-1] if byte in b"}]" else self.open, byte)

    @property
    def named(self) -> bool:
        """Whether a string here is the name of a property."""
        return self.open[-1:] == b"{" and self.last in b"{,"


START = Place()
