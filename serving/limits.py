"""How much one request may ask for of encoders. Knows no route."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.failure import FieldFailure


@dataclass(frozen=True)
class Limits:
    """Of a request: how many texts (or pairs of them), and how many characters in one."""

    texts: int
    characters: int

    def check(self, field: str, texts: Sequence[str]) -> None:
        """FieldFailure names the field and both numbers."""
        if len(texts) > self.texts:
            where = f"{field}: {len(texts):,} texts; at most {self.texts:,} are taken"
            raise FieldFailure("invalid_value", f"{where} (GPU_MAX_BATCH_SIZE)", field)
        for at, text in enumerate(texts):
            if len(text) > self.characters:
                where = f"{field}.{at}: {len(text):,} characters; at most {self.characters:,} are taken"
                raise FieldFailure("invalid_value", f"{where} (GPU_MAX_TEXT_LENGTH)", f"{field}.{at}")
