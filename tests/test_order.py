"""control/order.py and control/cards.py: what is refused before anything is sent, which cards are taken, and what the
container is told."""

from dataclasses import replace
from typing import Any

import pytest

import settings
from deploy import limits
from deploy.control import cards
from deploy.control.bodies import GpuType, PodBody, VolumeBody
from deploy.control.order import MARK, Mode, Order, Refused
from models import catalog, machine
from models.failure import Failure

DIGEST = "@sha256:" + "0" * 64
ORDER = Order(name="z", mode="pod", row=catalog.MIXTRAL, image="a/b:1", keys=("k",), workers=(1, 3))
GIANT = replace(catalog.SHIZHENGPT, config={**catalog.SHIZHENGPT.config}, memory=0)


def gpu(id: str, pool: str | None = "P", secure: float = 1, flex: float | None = 2, **more: Any) -> GpuType:
    price = {"secure": secure, "community": 0.1, "serverless": flex}
    return GpuType.model_validate({"id": id, "name": id, "pool": pool, "memory": 1, "price": price, **more})


@pytest.mark.parametrize(
    "image",
    ["a/b:1.0", "ghcr.io/me/zopilot:0.1.0-cu130", "host:5000/a/b:v2", f"a/b{DIGEST}", f"a/b:1{DIGEST}", "b:latest-1"],
)
def test_an_image_by_version_or_digest_is_taken(image: str) -> None:
    replace(ORDER, image=image).check()


@pytest.mark.parametrize(
    "image", ["", "a/b", "a/b:latest", "host:5000/a/b", "a/b@sha256:12", "a b:1", "a/b:1\n", f"a/b:{DIGEST}"]
)
def test_an_image_that_may_be_another_tomorrow_is_refused(image: str) -> None:
    with pytest.raises(Refused, match="a version or a digest"):
        replace(ORDER, image=image).check()


def test_a_pod_without_a_key_is_refused_for_its_address_is_public() -> None:
    with pytest.raises(settings.SettingError, match="ZOPILOT_GPU_API_KEY is not set; the proxy of a RunPod pod"):
        replace(ORDER, keys=()).check()
    replace(ORDER, keys=(), mode="queue").check()


def test_a_balancer_without_a_worker_is_refused_where_it_would_not_wait_long_enough() -> None:
    balanced = replace(ORDER, mode="lb", workers=(0, 3))
    with pytest.raises(Refused, match=r"waits 120 seconds for a worker, and a cold start takes 76 to 137"):
        balanced.check()
    replace(balanced, workers=(1, 3)).check()
    replace(balanced, row=catalog.SMOLLM2).check()
    replace(balanced, baked=True).check()
    replace(balanced, mode="queue").check()
    assert limits.WORKER_SECONDS == 120


def test_what_the_container_would_refuse_is_refused_here() -> None:
    with pytest.raises(settings.SettingError, match="ZOPILOT_DEADLINE_MS"):
        replace(ORDER, mode="lb", env={"ZOPILOT_DEADLINE_MS": "900000"}).check()
    with pytest.raises(settings.SettingError, match="ZOPILOT_KV_TOKENS"):
        replace(ORDER, env={"ZOPILOT_KV_TOKENS": "many"}).check()
    with pytest.raises(Refused, match="--env PORT: set by this command already"):
        replace(ORDER, env={"PORT": "1", "BENTOML_HOME": "/", "OTHER": "1"}).check()
    with pytest.raises(settings.SettingError, match="ZOPILOT_GRACE"):
        replace(ORDER, env={"ZOPILOT_GRACE": "long"}).check()
    with pytest.raises(settings.SettingError, match="BENTOML_DEBUG must not be set"):
        replace(ORDER, env={"BENTOML_DEBUG": "1"}).check()
    with pytest.raises(Refused, match="workers"):
        replace(ORDER, mode="queue", workers=(4, 3)).check()


@pytest.mark.parametrize("name", ["ZOPILOT_GPU_API_KEY", "ZOPILOT_RECEIPT_KEY"])
def test_a_key_on_the_command_line_is_refused_even_where_none_is_set(name: str) -> None:
    with pytest.raises(Refused, match=f"--env {name}: set by this command already"):
        replace(ORDER, mode="queue", keys=(), env={name: "sesame"}).check()


@pytest.mark.parametrize(("deadline", "seconds"), [({}, 900), ({"ZOPILOT_DEADLINE_MS": "3600000"}, 7500)])
def test_a_job_may_wait_for_its_turn_and_then_work_before_it_is_cut(deadline: dict[str, str], seconds: int) -> None:
    offer = cards.Offer("l40s", gpu("NVIDIA L40S"), 1.0, 1)
    body = replace(ORDER, mode="queue", env=deadline).endpoint_body(offer, [], [], [], None)
    assert body.timeout == 1000 * seconds > 2 * settings.read(deadline).deadline_ms + 60_000
    assert replace(ORDER, mode="lb").endpoint_body(offer, [], [], [], None).timeout == 330_000


@pytest.mark.parametrize("mode", ["queue", "pod", "lb"])
def test_what_the_container_is_told(mode: Mode) -> None:
    told = replace(ORDER, mode=mode, env={"ZOPILOT_KV_TOKENS": "9000"}).environment
    assert told["ZOPILOT_MODE"] == ("queue" if mode == "queue" else "http")
    assert told["ZOPILOT_MODEL"] == "mixtral-8x7b-instruct"
    assert (told["PORT"], told["ZOPILOT_KV_TOKENS"], told[MARK]) == ("3000", "9000", "z")
    assert ("PORT_HEALTH" in told) == ("HEALTH_CHECK_PATH" in told) == (mode == "lb")
    assert "RUNPOD_INIT_TIMEOUT" not in told
    assert "BENTOML_HOME" not in told  # the image has one of its own, whose models are those of the volume
    container = settings.read(told, form=settings.Container)
    assert (container.mode, container.port) == (told["ZOPILOT_MODE"], 3000)
    assert container.health_port == (3001 if mode == "lb" else 0)


def test_a_start_longer_than_seven_minutes_is_announced() -> None:
    """70 GB in bf16 are read in 350 s at worst; twice as much would not be ready in time."""
    assert "RUNPOD_INIT_TIMEOUT" not in replace(ORDER, mode="queue", row=catalog.SHIZHENGPT).environment
    config = {**catalog.SHIZHENGPT.config["text_config"], "num_hidden_layers": 128}
    giant = replace(GIANT, config={**GIANT.config, "text_config": config})
    order = replace(ORDER, mode="queue", row=giant)
    assert order.start.high > 420
    assert int(order.environment["RUNPOD_INIT_TIMEOUT"]) >= 2 * order.start.high
    assert "RUNPOD_INIT_TIMEOUT" not in replace(order, mode="pod").environment


def test_no_secret_shows_when_an_order_is_printed() -> None:
    order = replace(ORDER, keys=("sesame",), receipt_key="friend", registry=("reader", "swordfish"))
    assert order.environment["ZOPILOT_RECEIPT_KEY"] == "friend"
    assert "sesame" not in repr(order) and "friend" not in repr(order)
    assert "swordfish" not in repr(order)


def test_bodies_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="imageName"):
        PodBody.model_validate({"name": "z", "imageName": "a/b:1"})
    with pytest.raises(ValueError, match="greater than or equal to 10"):
        VolumeBody(name="z", size=5, data_center="EU-RO-1")
    assert VolumeBody(name="z", size=10, data_center="EU-RO-1").write() == {
        "name": "z",
        "size": 10,
        "dataCenter": "EU-RO-1",
    }


def test_the_volume_has_room_for_the_weights() -> None:
    assert ORDER.volume_body("EU-RO-1").size == 36
    assert replace(ORDER, row=catalog.SMOLLM2).volume_body("EU-RO-1").size == 10
    assert replace(ORDER, volume_size=100).volume_body("EU-RO-1").size == 100
    with pytest.raises(Refused, match="--volume-size 24: too few GB for mixtral"):
        replace(ORDER, volume_size=24).volume_body("EU-RO-1")


def test_cards_that_hold_mixtral_are_those_with_32_gb_and_more() -> None:
    held = cards.holding(catalog.MIXTRAL)
    assert held["rtx-5090"] == 53_715
    assert not {"rtx-4090", "rtx-3090", "l4"} & set(held)
    assert "l4" in cards.holding(catalog.SMOLLM2)
    assert set(cards.TYPES) <= set(machine.CARDS)
    with pytest.raises(Failure, match="rtx-4090 has"):
        cards.holding(catalog.MIXTRAL, ["rtx-4090"])


CATALOGUE = [
    gpu("NVIDIA GeForce RTX 4090", "ADA_24", 0.5, 0.7),
    gpu("NVIDIA H200", None, 3.9, None),
    gpu("NVIDIA GeForce RTX 5090", "ADA_32_PRO", 0.99, 1.58),
    gpu("NVIDIA L40S", "ADA_48_PRO", 0.86, 1.9),
    gpu("NVIDIA RTX 6000 Ada Generation", "ADA_48_PRO", 0.86, 1.9, availability="HIGH"),
    gpu("NVIDIA L40", "ADA_48_PRO", 0.9, 1.9),
    gpu("Some Card of Tomorrow", "NEW", 0.01, 0.01),
]


def ids(offers: list[cards.Offer]) -> list[str]:
    return [offer.gpu.id.removeprefix("NVIDIA ") for offer in offers]


def test_the_cheapest_that_holds_it_comes_first_and_an_unknown_one_never() -> None:
    pods = cards.offers(catalog.MIXTRAL, CATALOGUE, False)
    assert ids(pods) == ["RTX 6000 Ada Generation", "L40S", "GeForce RTX 5090", "H200"]
    assert [offer.price for offer in pods] == [0.86, 0.86, 0.99, 3.9]
    flex = cards.offers(catalog.MIXTRAL, CATALOGUE, True)
    assert ids(flex) == ["GeForce RTX 5090", "RTX 6000 Ada Generation", "L40S"]
    assert pods[2].rooms == 33


def test_an_operators_choice_decides_the_order() -> None:
    assert ids(cards.offers(catalog.MIXTRAL, CATALOGUE, False, ["h200", "rtx-5090"])) == ["H200", "GeForce RTX 5090"]


def test_what_else_is_in_a_pool_is_excluded() -> None:
    """A pool holds types that nobody asked for: too small, unknown here, or slices of a larger card."""
    accepted = cards.offers(catalog.MIXTRAL, CATALOGUE, True, ["l40s"])
    assert cards.excluded("ADA_48_PRO", accepted, CATALOGUE) == ["NVIDIA RTX 6000 Ada Generation", "NVIDIA L40"]
    assert cards.excluded("ADA_32_PRO", cards.offers(catalog.MIXTRAL, CATALOGUE, True), CATALOGUE) == []


def test_data_centres_with_most_of_a_card_come_first() -> None:
    places = [("A", "LOW"), ("B", "NONE"), ("C", "HIGH"), ("D", "MEDIUM"), ("E", "A NEW WORD")]
    stock = [{"id": id, "availability": level} for id, level in places]
    (offer,) = cards.offers(catalog.MIXTRAL, [gpu("NVIDIA L40S", dataCenters=stock)], False)
    assert offer.centers == ["C", "D", "A", "E"]
