"""The next token of each row from its logits. Knows nothing of sequences' lives or of grammars' contents."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from models.engine.sequence import Sampling
from models.failure import Failure

COLDEST = 1e-5


class Choices:
    """What may come next behind n places: fp32 logits [n, vocabulary], on whatever device, changed in place.

    A token whose bit in `allowed`, uint8 [n, vocabulary / 8 rounded up], is not set never comes. All rows are looked at
    together, and of a card's logits only what is drawn from ever comes to the host.
    """

    def __init__(self, logits: torch.Tensor, allowed: NDArray[np.uint8] | None) -> None:
        sound = torch.isfinite(logits).all(dim=1)
        if allowed is not None:
            forbid(logits, allowed)
        self._logits = logits
        best, chosen = logits.max(dim=1)
        self._totals = logits.logsumexp(dim=1)
        # One copy from a card for all three; a float holds every id below 2^24 exactly.
        self._best, self._logprobs, self._sound = torch.stack([chosen, best - self._totals, sound]).tolist()

    def choose(self, at: int, sampling: Sampling, generator: torch.Generator | None) -> int:
        """One token behind place `at`, the best one without a generator; Failure where the logits are not finite."""
        self._check(at)
        best = int(self._best[at])
        return best if generator is None else draw(self._logits[at].cpu(), sampling, generator)

    def logprob(self, at: int, token: int) -> float:
        """Of `token` among all that may come behind place `at`, at temperature 1."""
        return float(self._logprobs[at]) if token == self._best[at] else self.logprobs(at, [token])[0]

    def logprobs(self, at: int, tokens: list[int]) -> list[float]:
        """The same for several tokens; Failure where the logits are not finite."""
        self._check(at)
        found: list[float] = (self._logits[at, tokens] - self._totals[at]).tolist()
        return found

    def tops(self, at: int, most: int) -> list[tuple[int, float]]:
        """The likeliest tokens behind place `at`, at most `most` and only such as may come, with the same of each."""
        if not most:
            return []
        values, ids = self._logits[at].topk(min(most, self._logits.shape[1]))
        pairs = zip(ids.tolist(), (values - self._totals[at]).tolist(), strict=True)
        return [(token, logprob) for token, logprob in pairs if logprob > -math.inf]

    def _check(self, at: int) -> None:
        if not self._sound[at]:
            raise Failure("model_error", "the model's output was not finite")


def draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from fp32 logits [vocabulary], forbidden tokens at -inf; nucleus sampling as in arXiv 1904.09751."""
    # Differences to the best, so that a temperature near 0 tends to greedy and not to infinities.
    warmth = max(sampling.temperature, COLDEST)
    probabilities = torch.softmax((logits - logits.max()) / warmth, dim=-1)
    if sampling.top_p < 1.0:
        ranked, order = probabilities.sort(descending=True)
        # Keep every token before which less than top_p of the mass lies; the first stays even if that rounds to 0.
        kept = ranked.cumsum(-1) - ranked < sampling.top_p
        kept[0] = True
        return int(order[torch.multinomial(ranked * kept, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))


def forbid(logits: torch.Tensor, allowed: NDArray[np.uint8]) -> None:
    """Set the tokens whose bit is not set in `allowed` to -inf in logits [n, vocabulary], in place.

    Not llguidance.torch: its kernel is a torch.compile function, which wants a C++ compiler at run time.
    """
    if logits.device.type == "cpu":
        bits = np.unpackbits(~allowed, axis=1, bitorder="little", count=logits.shape[1])
        forbidden = torch.from_numpy(bits.view(np.bool_))
    else:  # an eighth of the bytes travels, and is spread over there
        sent = torch.from_numpy(allowed).to(logits.device)
        places = torch.arange(8, dtype=torch.uint8, device=logits.device)
        forbidden = ((sent[:, :, None] >> places) & 1 == 0).flatten(1)[:, : logits.shape[1]]
    logits.masked_fill_(forbidden, -torch.inf)
