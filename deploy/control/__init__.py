"""The control plane: what an operator's machine asks of RunPod's REST v2 and of its volumes. Not in the image."""
