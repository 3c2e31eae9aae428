"""What the compiler says of every kernel of a full-width Mixtral step, for a card that is not here; as JSON.

python -m tests.gate 120
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

from scripts import kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def main() -> None:
    capability = int(sys.argv[1])
    for tokens, name, kernel in kernels.compile_all((capability // 10, capability % 10)):
        print(json.dumps({"tokens": tokens, "kernel": name, "capability": capability} | inspect(kernel)))


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
    main()
