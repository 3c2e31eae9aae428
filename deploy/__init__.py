"""What knows RunPod: process 1 of the image, and the control plane that puts it there. Knows no weights."""
