"""4-bit weights: NF4 of QLoRA (Dettmers et al. 2023, arXiv 2305.14314), blocks of 64, doubly quantised."""
