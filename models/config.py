"""A config.json of others, read with suspicion: nothing in it may choose code to run. Knows no torch."""

from collections.abc import Iterator
from typing import Any

from models.failure import Failure


def check_config(described: dict[str, Any], architectures: tuple[str, ...]) -> None:
    """Raise Failure unless this config names one of our architectures and nothing that chooses code to run."""
    if described.get("architectures") not in [[known] for known in architectures]:
        raise Failure("source_invalid", f"config.json does not describe a {' or '.join(architectures)}")
    for key, value in _walk("", described):
        # transformers takes `attn_implementation` with and without underscores; "owner/name" is fetched and run.
        chooses_code = key.lstrip("_").startswith(("attn_impl", "experts_impl"))
        if chooses_code or key in ("auto_map", "trust_remote_code", "quantization_config"):
            raise Failure("source_invalid", f"config.json holds {key}, which is refused")
        if isinstance(value, float) and value != value:
            raise Failure("source_invalid", f"config.json holds NaN under {key}")


def _walk(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Every value at any depth, with the key that it stands under."""
    yield key, node
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(str(name), value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(key, value)
