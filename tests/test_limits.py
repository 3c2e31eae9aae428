"""deploy/limits.py: what a platform would cut is refused before, and the refusal names it."""

import dataclasses

import pytest

from deploy import limits
from models.failure import Failure
from settings import Container, SettingError, Settings


@pytest.mark.parametrize(
    ("container", "platform"),
    [
        (Container(), limits.ELSEWHERE),
        (Container(pod="p"), limits.POD),
        (Container(pod="p", endpoint="e"), limits.BALANCER),
        (Container(pod="p", endpoint="e", mode="queue"), limits.QUEUE),
        (Container(mode="queue"), limits.QUEUE),
    ],
)
def test_the_platform_is_told_by_what_runpod_sets(container: Container, platform: limits.Platform) -> None:
    assert limits.find(container) is platform


KEYED = Settings(api_keys=("k",))


@pytest.mark.parametrize(
    ("platform", "settings", "message"),
    [
        (
            limits.BALANCER,
            dataclasses.replace(KEYED, max_body=30_000_001),
            "a RunPod load balancer takes 30000000 bytes",
        ),
        (limits.QUEUE, dataclasses.replace(KEYED, max_body=10_000_001), "a RunPod queue takes 10000000 bytes"),
        (limits.BALANCER, dataclasses.replace(KEYED, deadline_ms=320_001), "after 330 seconds, so at most 320000"),
        (limits.POD, Settings(), "ZOPILOT_GPU_API_KEY is not set; the proxy of a RunPod pod lets everyone in"),
    ],
)
def test_settings_that_the_platform_would_cut_stop_the_start(
    platform: limits.Platform, settings: Settings, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        limits.check(platform, settings)


@pytest.mark.parametrize("platform", [limits.POD, limits.BALANCER, limits.QUEUE, limits.ELSEWHERE])
def test_the_defaults_fit_everywhere(platform: limits.Platform) -> None:
    limits.check(platform, KEYED)


def test_settings_at_the_limit_are_taken() -> None:
    limits.check(limits.BALANCER, dataclasses.replace(KEYED, max_body=30_000_000, deadline_ms=320_000))
    limits.check(limits.POD, dataclasses.replace(KEYED, max_body=1 << 30, deadline_ms=3_600_000))
    limits.check(limits.ELSEWHERE, Settings())


def test_an_answer_beyond_the_limit_is_an_error_that_names_both_sizes() -> None:
    limits.check_answer(limits.BALANCER, 30_000_000)
    limits.check_answer(limits.POD, 1 << 40)
    with pytest.raises(Failure, match="has 30000001 bytes; a RunPod load balancer takes 30000000") as refused:
        limits.check_answer(limits.BALANCER, 30_000_001)
    assert refused.value.code == "answer_too_large"
