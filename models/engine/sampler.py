"""The next token of each row from its logits. Knows nothing of sequences' lives or of grammars' contents."""

import torch

from models.engine.sequence import Sampling


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """One token id from fp32 logits [vocabulary], forbidden tokens at -inf; nucleus sampling as in arXiv 1904.09751."""
    if generator is None:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        ranked, order = probabilities.sort(descending=True)
        # Keep every token before which less than top_p of the mass lies: at least one always stays.
        kept = ranked.cumsum(-1) - ranked < sampling.top_p
        return int(order[torch.multinomial(ranked * kept, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
