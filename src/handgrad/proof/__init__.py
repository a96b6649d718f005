"""Proofs about the kernels that need no GPU: correctness against float64 NumPy, and their machine code."""
