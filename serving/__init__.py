"""What knows HTTP and knows nothing of weights."""
