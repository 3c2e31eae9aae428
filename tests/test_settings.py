"""settings.py: what an operator may set, and what is refused at the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import settings
from tests.conftest import ROOT


def test_nothing_set_gives_the_defaults() -> None:
    assert settings.read({}) == settings.Settings()


def test_empty_means_unset() -> None:
    assert settings.read({"ZOPILOT_KV_TOKENS": "  ", "ZOPILOT_GPU_API_KEY": ""}) == settings.Settings()


def test_values_are_parsed() -> None:
    found = settings.read(
        {
            "ZOPILOT_GPU_API_KEY": "one, two,,",
            "ALLOWED_ORIGINS": "https://a.example,https://b.example",
            "HEALTH_CHECK_PUBLIC": "0",
            "ZOPILOT_KV_TOKENS": "1024",
            "ZOPILOT_RECEIPT_KEY": " a, b ",
        }
    )
    assert found.api_keys == ("one", "two")
    assert found.allowed_origins == ("https://a.example", "https://b.example")
    assert found.health_public is False
    assert found.kv_tokens == 1024
    assert found.receipt_key == "a, b"


@pytest.mark.parametrize("text", ["-1", "1e3", "10000001", "٣٠٠", "many"])
def test_a_number_out_of_range_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(settings.SettingError, match=r"ZOPILOT_KV_TOKENS is .* allowed: a whole number from 0 to"):
        settings.read({"ZOPILOT_KV_TOKENS": text})


def test_a_flag_takes_four_words() -> None:
    with pytest.raises(settings.SettingError, match="HEALTH_CHECK_PUBLIC"):
        settings.read({"HEALTH_CHECK_PUBLIC": "yes"})


def test_the_store_is_where_bentoml_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", "/somewhere")
    assert str(settings.store_path()) == "/somewhere/models"
    monkeypatch.delenv("BENTOML_HOME")
    monkeypatch.setenv("HOME", "/root-of-someone")
    assert str(settings.store_path()) == "/root-of-someone/bentoml/models"


def test_what_lies_beside_a_store_that_is_linked_lies_on_its_volume(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models").symlink_to("/the-volume/models")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    assert str(settings.store_path()) == "/the-volume/models"


def test_what_is_kept_for_shapes_is_bounded_before_torch_comes_in() -> None:
    code = "import os, sys, service; assert 'torch' not in sys.modules; print(*map(os.environ.get, sys.argv[1:]))"
    names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"]
    own = {name: value for name, value in os.environ.items() if name not in names}
    for environ, told in ((own, "256 256"), (own | {names[0]: "512"}, "512 256")):
        done = subprocess.run(
            [sys.executable, "-c", code, *names], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == told
