"""BERT and DeBERTa: what reads a text whole and gives a vector for each token. Without any head on top."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

from models.anatomy.sizes import Anatomy, Form, Parameter, flag, size

RELATIVE = {"c2p": ("pos_proj", False), "p2c": ("pos_q_proj", True)}  # a way of attention, its matrix, with a bias?


@dataclass(frozen=True)
class Sizes:
    """What of a config decides the shapes of parameters; `distances` is 0 where positions are not relative."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    kinds: int
    distances: int
    ways: tuple[str, ...]


def describe_bert(config: Mapping[str, Any], form: Form) -> Anatomy:
    """Every parameter of a BertModel without its pooler; ValueError names what of the config cannot be used."""
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise ValueError("positions other than absolute ones are not known")
    if flag(config, "is_decoder") or flag(config, "add_cross_attention"):
        raise ValueError("a decoder of this kind is not known")
    positions = size(config, "max_position_embeddings", default=512)
    return _describe(_read(config, positions=positions, kinds=size(config, "type_vocab_size", default=2)), form)


def describe_deberta(config: Mapping[str, Any], form: Form) -> Anatomy:
    """The same of a DebertaModel."""
    hidden = size(config, "hidden_size")
    if not flag(config, "relative_attention") or flag(config, "talking_head"):
        raise ValueError("attention other than DeBERTa's relative one is not known")
    if size(config, "embedding_size", default=hidden) != hidden:
        raise ValueError("embeddings of another size than the layers' are not known")
    longest = size(config, "max_position_embeddings", default=512)
    distances = config.get("max_relative_positions")
    biased = config.get("position_biased_input") is None or flag(config, "position_biased_input")
    ways = config.get("pos_att_type") or []
    if isinstance(ways, str):
        ways = ways.lower().split("|")
    if not isinstance(ways, list) or not all(isinstance(way, str) for way in ways):
        raise ValueError(f"pos_att_type is {shown(ways)}, no list of names")
    if not set(ways) <= RELATIVE.keys():
        raise ValueError(f"pos_att_type holds other ways than {', '.join(RELATIVE)}")
    sizes = _read(
        config,
        positions=longest if biased else 0,
        kinds=size(config, "type_vocab_size") if config.get("type_vocab_size") else 0,
        distances=longest if distances in (None, -1) else size(config, "max_relative_positions"),
        ways=tuple(ways),
    )
    return _describe(sizes, form)


def _read(
    config: Mapping[str, Any], *, positions: int, kinds: int, distances: int = 0, ways: tuple[str, ...] = ()
) -> Sizes:
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if hidden % heads:
        raise ValueError(f"{hidden} numbers cannot be shared by {heads} heads")
    return Sizes(
        hidden=hidden,
        intermediate=size(config, "intermediate_size"),
        layers=size(config, "num_hidden_layers", most=1000),
        heads=heads,
        vocabulary=size(config, "vocab_size"),
        positions=positions,
        kinds=kinds,
        distances=distances,
        ways=ways,
    )


def _describe(sizes: Sizes, form: Form) -> Anatomy:
    if form.bits == 4:
        raise ValueError("an encoder in 4 bits is not known")
    # transformers keeps what every layer said; a layer at work holds some six such, and two of the wide kind. Of
    # tables of scores DeBERTa holds ten at a time; elsewhere the kernel may hold two.
    alone = (sizes.layers + 7) * sizes.hidden + 2 * sizes.intermediate
    return Anatomy(list(_parameters(sizes, form)), reading=(alone, (10 if sizes.distances else 2) * sizes.heads))


def _parameters(sizes: Sizes, form: Form) -> Iterator[Parameter]:
    tables = {"word": sizes.vocabulary, "position": sizes.positions, "token_type": sizes.kinds}
    for table, rows in tables.items():
        if rows:
            yield form.plain("embeddings", f"embeddings.{table}_embeddings.weight", rows, sizes.hidden)
    yield from _norm("embeddings", sizes, form)
    if sizes.distances:
        yield form.plain("embeddings", "encoder.rel_embeddings.weight", 2 * sizes.distances, sizes.hidden)
    for number in range(sizes.layers):
        layer = f"encoder.layer.{number}"
        yield from (_relative if sizes.distances else _absolute)(sizes, form, f"{layer}.attention.self")
        yield from _linear("attention", f"{layer}.attention.output.dense", sizes.hidden, sizes.hidden, form)
        yield from _norm(f"{layer}.attention.output", sizes, form)
        yield from _linear("mlp", f"{layer}.intermediate.dense", sizes.intermediate, sizes.hidden, form)
        yield from _linear("mlp", f"{layer}.output.dense", sizes.hidden, sizes.intermediate, form)
        yield from _norm(f"{layer}.output", sizes, form)


def _absolute(sizes: Sizes, form: Form, path: str) -> Iterator[Parameter]:
    for name in ("query", "key", "value"):
        yield from _linear("attention", f"{path}.{name}", sizes.hidden, sizes.hidden, form)


def _relative(sizes: Sizes, form: Form, path: str) -> Iterator[Parameter]:
    yield form.plain("attention", f"{path}.q_bias", sizes.hidden)
    yield form.plain("attention", f"{path}.v_bias", sizes.hidden)
    yield from form.matrix("attention", f"{path}.in_proj", 3 * sizes.hidden, sizes.hidden)
    for way in sizes.ways:
        matrix, biased = RELATIVE[way]
        yield from form.matrix("attention", f"{path}.{matrix}", sizes.hidden, sizes.hidden)
        if biased:
            yield form.plain("attention", f"{path}.{matrix}.bias", sizes.hidden)


def _linear(group: str, path: str, rows: int, columns: int, form: Form) -> Iterator[Parameter]:
    yield from form.matrix(group, path, rows, columns)
    yield form.plain(group, f"{path}.bias", rows)


def _norm(path: str, sizes: Sizes, form: Form) -> Iterator[Parameter]:
    for name in ("weight", "bias"):
        yield form.plain("norms", f"{path}.LayerNorm.{name}", sizes.hidden)
