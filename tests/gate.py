"""Compile every kernel of a full-width Mixtral step for a card that is not here; print what the compiler says, as JSON.

python -m tests.gate 120

The real launch code runs on meta tensors, which hold no data: a step that asked the device for a number would fail.
Must not run in Triton's interpreter.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from transformers import MixtralConfig
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from models import catalog, network
from models.engine.attention import Span
from models.engine.batch import Batch
from models.engine.cache import Cache
from models.engine.graphs import BUCKETS, Graphs
from models.nf4 import paths, products
from models.nf4.layout import specs
from models.nf4.matrix import Packed

META = torch.device("meta")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Absent:
    """Stands for the driver of a card of `capability`, such as 90 or 120."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    capability = int(sys.argv[1])
    driver.set_active(Absent(capability))
    compiled: dict[int, tuple[str, str, Any]] = {}
    where = ""
    launch = JITFunction.run

    def compile_only(self: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *given, grid=grid, warmup=True, **options)
        compiled.setdefault(id(kernel), (where, self.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    config = MixtralConfig(**{**catalog.MIXTRAL.config, "num_hidden_layers": 2})
    model = network.build(config, torch.bfloat16)
    cache = Cache(2, config.num_key_value_heads, 128, torch.bfloat16, META, 1 << 16)
    graphs = Graphs(model, cache, divmod(capability, 10))
    longest = max(path.tokens for path in paths.TABLE[divmod(capability, 10)])
    for tokens in (*BUCKETS, longest):
        where = str(tokens)
        spans = [Span([at + 1], at, 0, 1) for at in range(tokens)]
        graphs(Batch([1] * tokens, [0] * tokens, spans, list(range(tokens))))
    where = "slices"
    matrix = Packed(*(torch.empty(each.shape, dtype=getattr(torch, each.dtype), device=META) for each in FORM.values()))
    products.dequantise(matrix, 7, torch.empty(64, 4096, dtype=torch.bfloat16, device=META))
    for where, name, kernel in compiled.values():
        print(json.dumps({"step": where, "kernel": name, "capability": capability} | inspect(kernel)))


FORM = specs(14336, 4096)


def inspect(kernel: Any) -> dict[str, Any]:
    """Registers a thread, bytes of stack and of shared memory, and the instructions of its longest loop."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told, text = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    used = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert used, told
    found = re.findall(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)([^;]*);", text, re.MULTILINE)
    lines = [(int(at, 16), name, rest) for at, name, rest in found]
    loops = [
        (int(target[1], 16), at)
        for at, name, rest in lines
        if name == "BRA" and (target := re.search(r"0x([0-9a-f]+)", rest)) and int(target[1], 16) < at
    ]
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    return {
        "registers": int(used[1]),
        "stack": int(used[2]),
        "shared": kernel.metadata.shared,
        "threads": kernel.metadata.num_warps * 32,
        "all": Counter(name for _, name, _ in lines),
        "loop": Counter(name for at, name, _ in lines if begin <= at < end),
    }


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") != "1"
    main()
