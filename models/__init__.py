"""Everything that knows about weights: the models we serve and the parts they share. Knows no HTTP and no RunPod."""
