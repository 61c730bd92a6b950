"""The paper's two-dimensional toy, from training to picture (arXiv 2406.02507, section 3)."""
