"""The next token of each row from its logits. Knows nothing of sequences' lives or of grammars' contents."""

import torch

from models.engine.sequence import Sampling

COLDEST = 1e-5


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token id from fp32 logits [vocabulary], forbidden tokens at -inf; nucleus sampling as in arXiv 1904.09751."""
    if generator is None:
        return int(logits.argmax())
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
