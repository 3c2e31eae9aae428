"""Every kernel of Mixtral's steps compiled for a card that is not here, so that nothing compiles where it is.

What is made lies in Triton's cache, the folder TRITON_CACHE_DIR, which an image may carry. The real launch code runs,
on meta tensors, which hold no data: a step that waited for a number from the card would fail.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import settings

settings.harden_process()

import torch  # noqa: E402 - the environment comes first
import triton  # noqa: E402
from transformers import MixtralConfig  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia import driver as nvidia  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.build import compile_module_from_src  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from models import catalog, machine, network  # noqa: E402
from models.engine.cache import Cache  # noqa: E402
from models.engine.graphs import Graphs, batches  # noqa: E402
from models.nf4 import paths, products  # noqa: E402
from models.nf4.matrix import Packed  # noqa: E402
from models.nf4.slices import Slices  # noqa: E402

META = torch.device("meta")
LAYERS = 2  # the first one and the last, which differ


class Compiled(NamedTuple):
    """A kernel, and for how many tokens it was wanted first; `kernel` is Triton's own object."""

    tokens: int
    name: str
    kernel: Any


class Absent:
    """Stands for the driver of a card of a compute capability."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/kernels", description=__doc__)
    cards = [name for name, card in machine.CARDS.items() if card.capability in paths.TABLE]
    parser.add_argument("card", choices=cards, nargs="?", default="rtx-5090")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("scripts/kernels: TRITON_INTERPRET is set, which compiles nothing")
    build_launcher()
    found = compile_all(machine.CARDS[options.card].capability)
    print(f"{len(found)} kernels for {options.card} in {triton.knobs.cache.dir}")
    return 0


def build_launcher() -> None:
    """Triton's own library in C, which it otherwise builds where it first finds a card; exits without a compiler."""
    source = (Path(nvidia.__file__).parent / "driver.c").read_text()
    with TemporaryDirectory() as folder:
        # The driver's library comes with the driver: here its name is enough to be linked against.
        stub = Path(folder, "libcuda.so.1")
        compiler = shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            sys.exit("scripts/kernels: gcc or clang is needed")
        subprocess.run([compiler, "-shared", "-o", stub, "-x", "c", "/dev/null"], check=True)
        with suppress(ImportError):  # once built and put into the cache it is loaded, which needs the driver
            compile_module_from_src(
                source, "cuda_utils", [nvidia.libdevice_dir, folder], nvidia.include_dirs, nvidia.libraries
            )


def compile_all(capability: tuple[int, int]) -> list[Compiled]:
    """All that steps of the full model launch, each variant once. To be called once in a process."""
    config = MixtralConfig(**{**catalog.MIXTRAL.config, "num_hidden_layers": LAYERS})
    model = network.build(config, torch.bfloat16)
    heads = config.num_key_value_heads
    cache = Cache(LAYERS, heads, config.hidden_size // config.num_attention_heads, torch.bfloat16, META, 1 << 16)
    driver.set_active(Absent(capability))
    recorder = Recorder()
    with _recorded(recorder):
        graphs = Graphs(model, cache, capability)
        for batch in batches(capability):
            recorder.tokens = len(batch.ids)
            graphs(batch)
    return list(recorder.kernels.values())


@contextmanager
def _recorded(into: "Recorder") -> Iterator[None]:
    """Launches compile and go no further; experts by slices, which do wait for their routing, are passed over."""
    launch, experts = JITFunction.run, Slices.experts

    def compile_only(self: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *given, grid=grid, warmup=True, **options)
        into.kernels.setdefault(id(kernel), Compiled(into.tokens, self.__name__, kernel))
        return kernel

    def unrouted(
        self: Slices, x: torch.Tensor, members: products.Members, gate: Packed, up: Packed, down: Packed
    ) -> torch.Tensor:
        hidden = x.new_empty(x.shape[0], gate.packed.shape[1])
        self.multiply(x, gate, 0, hidden)
        self.multiply(hidden, down, 0, x)
        return x.new_empty(1, members.chosen.numel(), x.shape[1])

    JITFunction.run, Slices.experts = compile_only, unrouted  # type: ignore[method-assign]
    try:
        yield
    finally:
        JITFunction.run, Slices.experts = launch, experts  # type: ignore[method-assign]


class Recorder:
    """What has been compiled, by identity; `tokens` is the step's that is under way."""

    def __init__(self) -> None:
        self.tokens = 0
        self.kernels: dict[int, Compiled] = {}


if __name__ == "__main__":
    sys.exit(main())
