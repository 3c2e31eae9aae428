"""Real things to test against, made once a run: the small model in a store, a tiny one beside it, a running service."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ.setdefault("TRITON_INTERPRET", "1")  # scripts/test --gpu says 0
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads on a shared core wait for each other longer than they compute

import httpx
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    DebertaConfig,
    DebertaForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.tokenizer import read_tokenizer
from models import catalog, manifest, origin, source, store, wheels
from tests import interpreter, seeing

if TYPE_CHECKING:
    from models.engine.engine import Engine

interpreter.teach()
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TINY_MIXTRAL = MixtralConfig(
    architectures=["MixtralForCausalLM"],
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    max_position_embeddings=512,
)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME that holds SmolLM2, imported from its wheel by the project's own importer."""
    path = tmp_path_factory.mktemp("home")
    store.import_model(catalog.SMOLLM2, path / "models")
    return path


@pytest.fixture(scope="session")
def smollm2(home: Path) -> store.Loaded:
    """The real small model, loaded. Share it, do not change it."""
    return store.load(manifest.locate(catalog.SMOLLM2, home / "models"), torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, smollm2: store.Loaded) -> Path:
    """A random two-layer Llama of 3.3 M weights with SmolLM2's tokenizer, as a folder in the hub's layout."""
    path = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        vocab_size=smollm2.network.config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    smollm2.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A BENTOML_HOME whose smollm2-135m-instruct is the tiny model: same tokenizer, a step in milliseconds."""
    path = tmp_path_factory.mktemp("tiny-home")
    store.import_model(catalog.SMOLLM2, path / "models", tiny_folder)
    return path


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as its publisher has it, as far as it is needed here: for libraries that are asked for the truth."""
    path = tmp_path_factory.mktemp("minilm")
    assert isinstance(catalog.MINILM.source, origin.Wheel)
    wheels.fetch(catalog.MINILM.source, path)
    return path


@pytest.fixture(scope="session")
def tiny_deberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[catalog.Encoder, Path]:
    """A random DeBERTa of 4 layers, of which 3 are kept, under a classifier as its publisher's is; and its row."""
    path = tmp_path_factory.mktemp("tiny-deberta")
    words = ["a", "the", "cat", "sat", "on", "mat", "invoice", "total", "is", "45", "euro"]
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *words, *"abcdefghijklmnopqrstuvwxyz0123456789.,"]
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **named).save_pretrained(path)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    how: dict[str, Any] = {
        key: catalog.DEBERTA.config[key] for key in ("relative_attention", "pos_att_type", "position_biased_input")
    }
    config = DebertaConfig(
        vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=4, initializer_range=0.2, **size, **how
    )
    torch.manual_seed(0)
    DebertaForSequenceClassification(config).save_pretrained(path)
    kept = {**catalog.DEBERTA.config, **size, "vocab_size": config.vocab_size, "num_hidden_layers": 3}
    return replace(catalog.DEBERTA, config=kept, layer=3, window=64, batch_tokens=256), path


@pytest.fixture(scope="session")
def encoder_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME that holds MiniLM, imported from its wheel."""
    path = tmp_path_factory.mktemp("encoder-home")
    store.import_model(catalog.MINILM, path / "models")
    return path


@pytest.fixture
def tiny(tiny_home: Path) -> store.Loaded:
    """The tiny model, loaded afresh for one test."""
    return store.load(manifest.locate(catalog.SMOLLM2, tiny_home / "models"), torch.device("cpu"))


@pytest.fixture(scope="session")
def mixtral_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Mixtral-8x7B-Instruct's real tokenizer and chat template, from mistral-common's file."""
    return read_tokenizer(tmp_path_factory.mktemp("mixtral-tokenizer"))


@pytest.fixture(scope="session")
def tiny_mixtral_folder(tmp_path_factory: pytest.TempPathFactory, mixtral_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random two-layer Mixtral of 4.5 M weights with the real tokenizer, as a folder in the hub's bf16 layout."""
    path = tmp_path_factory.mktemp("tiny-mixtral")
    config = MixtralConfig(
        vocab_size=32_000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).bfloat16().save_pretrained(path, max_shard_size="2MB")
    mixtral_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_mixtral_home(tmp_path_factory: pytest.TempPathFactory, tiny_mixtral_folder: Path) -> Path:
    """A BENTOML_HOME whose mixtral-8x7b-instruct is the tiny Mixtral."""
    path = tmp_path_factory.mktemp("tiny-mixtral-home")
    store.import_model(catalog.MIXTRAL, path / "models", tiny_mixtral_folder)
    return path


@pytest.fixture
def tiny_mixtral(tiny_mixtral_home: Path) -> store.Loaded:
    """The tiny Mixtral, loaded afresh for one test."""
    return store.load(manifest.locate(catalog.MIXTRAL, tiny_mixtral_home / "models"), torch.device("cpu"))


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """A random two-layer Qwen2.5-VL with SmolLM2's tokenizer and three marks of pictures, in the hub's layout."""
    path = tmp_path_factory.mktemp("seeing")
    seeing.save(path, source.open_tokenizer(manifest.locate(catalog.SMOLLM2, home / "models")))
    return path


@pytest.fixture(scope="session")
def seeing_home(tmp_path_factory: pytest.TempPathFactory, seeing_folder: Path) -> Path:
    """A BENTOML_HOME whose shizhengpt-32b-vl is the tiny Qwen2.5-VL in bf16, and its NF4 row the same in NF4."""
    path = tmp_path_factory.mktemp("seeing-home")
    for row in (catalog.SHIZHENGPT, catalog.SHIZHENGPT_NF4):
        store.import_model(row, path / "models", seeing_folder)
    return path


@contextmanager
def started(engine: "Engine") -> Iterator["Engine"]:
    """An engine that is running until the block ends."""
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"


@contextmanager
def serve(
    home: Path, log: Path, *, ready: bool = True, target: str = "service:ZopilotGPU", **environ: str
) -> Iterator[Server]:
    """Run the service on a free port until the block ends; waits until it is ready unless told otherwise."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZOPILOT", "BENTOML"))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, "BENTOML_HOME": str(home), **environ},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", log, process)
    try:
        if ready:
            wait_until_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(server: Server, seconds: float = 90) -> None:
    """Return when /readyz says 200; fail if the process ends or the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the service did not become ready: {server.log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def tiny_server(tiny_home: Path, encoder_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service over the tiny model, for contracts, where what it says does not matter; and the real MiniLM."""
    home = tmp_path_factory.mktemp("tiny-server")
    for other, model in ((tiny_home, catalog.SMOLLM2), (encoder_home, catalog.MINILM)):
        shutil.copytree(other / "models" / model.name, home / "models" / model.name)
    (home / "calibrations").symlink_to(tiny_home / "calibrations")  # where there are any
    with serve(home, home / "log") as server:
        yield server


@pytest.fixture(scope="session")
def seeing_server(seeing_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service over the tiny model that reads images."""
    log = tmp_path_factory.mktemp("seeing-server") / "log"
    with serve(seeing_home, log, ZOPILOT_MODEL=catalog.SHIZHENGPT.name) as server:
        yield server


@pytest.fixture(scope="session")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service over the real small model."""
    with serve(home, tmp_path_factory.mktemp("server") / "log") as server:
        yield server
