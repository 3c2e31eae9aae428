"""Turn the small model's GGUF file into a folder of safetensors in bfloat16, once. Run by a peer's own venv."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, target: Path) -> None:
    """The folder appears when it is whole."""
    scratch = target.with_name(f"{target.name}.part")
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**place)
    model: Any = AutoModelForCausalLM.from_pretrained(
        **place, dtype="float32", quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    scratch.rename(target)


if __name__ == "__main__":
    if not Path(sys.argv[2]).exists():
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
