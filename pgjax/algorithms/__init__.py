"""One file an algorithm: what its state is, and `make`, in the order of the paper's pseudo-code."""
