"""Everything that knows about weights: the models we serve and the parts they share. Knows nothing of HTTP or RunPod."""
