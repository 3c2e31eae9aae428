"""What scripts/verify does: ask a running service about rows whose truth is known, and say what became of them."""
