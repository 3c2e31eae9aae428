"""Which of RunPod's cards hold a model, what they cost and where they are free: the catalogue as candidates, cheapest
first. Knows what cards are called there; prices, pools and stock it reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.control.bodies import GpuType
from models import plan
from models.catalog import Model
from models.failure import Failure
from models.machine import CARDS

# RunPod's ids of the cards that we know (docs.runpod.io, references/gpu-types). Another type is never taken, for
# nobody knows here what it holds.
TYPES = {
    "rtx-3090": ("NVIDIA GeForce RTX 3090",),
    "rtx-4090": ("NVIDIA GeForce RTX 4090",),
    "rtx-5090": ("NVIDIA GeForce RTX 5090",),
    "rtx-a6000": ("NVIDIA RTX A6000",),
    "rtx-6000-ada": ("NVIDIA RTX 6000 Ada Generation",),
    "rtx-pro-6000": (
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    ),
    "l4": ("NVIDIA L4",),
    "l40s": ("NVIDIA L40S",),
    "a100-80gb": ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"),
    "h100-80gb": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"),
    "h200": ("NVIDIA H200",),
    "b200": ("NVIDIA B200",),
}
# The CUDA that torch 2.13's default wheels are built for; a host with an older driver cannot run them.
CUDA = "13.0"
# Where a network volume can be filled without a pod (docs.runpod.io, storage/s3-api): new ones are made nowhere else.
S3_CENTERS = {
    *("EU-CZ-1", "EU-RO-1", "EUR-IS-1", "EUR-NO-1", "US-CA-2", "US-GA-2", "US-IL-1", "US-KS-2", "US-MD-1"),
    *("US-MO-1", "US-MO-2", "US-NC-1", "US-NC-2", "US-NE-1", "US-WA-1"),
}
STOCK = {"HIGH": 0, "MEDIUM": 1, "LOW": 2, "NONE": 3}


@dataclass(frozen=True)
class Offer:
    """A card that holds the model: RunPod's type, dollars an hour, tokens of KV cache beside the weights."""

    card: str
    gpu: GpuType
    price: float
    tokens: int

    @property
    def rooms(self) -> int:
        """Documents that it computes at once."""
        return max(1, self.tokens // plan.DOCUMENT)

    @property
    def centers(self) -> list[str]:
        """Where it is free, most of it first."""
        free = [place for place in self.gpu.data_centers if place.availability != "NONE"]
        return [place.id for place in sorted(free, key=lambda place: STOCK.get(place.availability, 2))]


def holding(row: Model, wanted: Sequence[str] = ()) -> dict[str, int]:
    """Cards that hold `row`, and tokens of KV cache beside it; of `wanted`, or of all that RunPod has.
    Failure with the numbers where none does."""
    planned, found, refused = plan.of_row(row), {}, Failure("memory_too_small", "no card is known")
    for name in wanted or TYPES:
        try:
            found[name] = planned.budget(CARDS[name].within(row.memory))
        except Failure as failure:
            refused = failure
    if not found:
        raise refused
    return found


def offers(row: Model, gpus: Sequence[GpuType], serverless: bool, wanted: Sequence[str] = ()) -> list[Offer]:
    """What there is of the catalogue that holds `row`: cheapest first, or in the order of `wanted`."""
    tokens, found = holding(row, wanted), []
    for gpu in gpus:
        card = next((name for name, types in TYPES.items() if gpu.id in types), "")
        price = gpu.price.serverless if serverless else gpu.price.secure
        if card in tokens and price is not None and (gpu.pool or not serverless):
            found.append(Offer(card, gpu, price, tokens[card]))
    rank = {name: place for place, name in enumerate(wanted)}
    return sorted(found, key=lambda offer: (rank.get(offer.card, 0), offer.price, STOCK.get(offer.gpu.availability, 2)))


def excluded(pool: str, accepted: Sequence[Offer], gpus: Sequence[GpuType]) -> list[str]:
    """Types in a pool that must not be taken: too small, not asked for, or unknown here."""
    fine = {offer.gpu.id for offer in accepted}
    return [gpu.id for gpu in gpus if gpu.pool == pool and gpu.id not in fine]
