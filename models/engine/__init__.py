"""Sequences to tokens: one thread owns the model and steps over all rows at once. Knows nothing of text or HTTP."""
