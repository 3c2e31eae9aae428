"""A Mixtral checkpoint of any size in the hub's layout, written layer by layer; and what its import takes.

python -m tests.synthetic DIR --layers 2      full width: 5.9 GB on disk, and 1.5 GB more for the import
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import MixtralConfig, PreTrainedTokenizerFast

from models import catalog, manifest, store

FULL = {"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8}


def write(folder: Path, layers: int, width: dict[str, int], vocabulary: int = 32_000) -> None:
    """Random bf16 weights under the hub's names, one expert's matrix after the other, two files a layer."""
    config = MixtralConfig(
        architectures=["MixtralForCausalLM"],
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        **width,  # type: ignore[arg-type]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}, default=str))
    words = Tokenizer(WordLevel({"<s>": 1, "</s>": 2, "<unk>": 0, "a": 3}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    generator = torch.Generator().manual_seed(layers)
    for number, shapes in enumerate(parts(config)):
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})


def parts(config: MixtralConfig) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of each file. Experts of one layer lie in two files, as they do on the hub."""
    hidden, intermediate, experts = config.hidden_size, config.intermediate_size, config.num_local_experts
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    yield {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        moe = f"{layer}.block_sparse_moe"
        for half in (range(experts // 2), range(experts // 2, experts)):
            yield {
                f"{moe}.experts.{expert}.{name}.weight": shape
                for expert in half
                for name, shape in (
                    ("w1", (intermediate, hidden)),
                    ("w2", (hidden, intermediate)),
                    ("w3", (intermediate, hidden)),
                )
            }
        yield {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{moe}.gate.weight": (experts, hidden),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
        }


def measure(folder: Path) -> dict[str, Any]:
    """Import in this process; bytes that it had before, with all libraries loaded, and at its peak."""
    manifest.bento_yaml("a", "b", {})  # BentoML is a library too
    torch.ops.bitsandbytes  # noqa: B018 - and so is this one
    before = peak()
    home = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        tag = store.import_model(catalog.MIXTRAL, home / "models", folder)
    finally:
        shutil.rmtree(home)
    return {"tag": tag, "before": before, "peak": peak(), "over": peak() - before}


def peak() -> int:
    """Bytes of memory that this process has had at most. Not getrusage's figure, which a child inherits at birth."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096, help="hidden size; the rest in proportion")
    parser.add_argument("--measure", action="store_true", help="import the checkpoint that is there, print its peak")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder)))
    else:
        width = {"hidden_size": options.width, "intermediate_size": options.width * 7 // 2}
        write(options.folder, options.layers, FULL | width)
    return 0


if __name__ == "__main__":
    sys.exit(main())
