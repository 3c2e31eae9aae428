"""The model at full size on an NVIDIA card, by itself: its speed beside the limits of that card, its tokens beside the
reference's. Random weights, so no file is read; nothing is asked over HTTP."""
