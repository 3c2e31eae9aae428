"""4-bit weights: NF4 of QLoRA (Dettmers et al. 2023, arXiv 2305.14314), blocks of 64, doubly quantised."""

import logging

# On a CPU with AVX512-BF16 bitsandbytes warns that an optional package is absent; we leave it out on purpose.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
