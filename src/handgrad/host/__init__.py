"""The training step on the CPU: one pass over X in blocks of rows, in buffers made once.

``engine`` plans a step and runs it; ``part`` holds one thread's buffers and gradient; ``block`` is the
mathematics of one block of rows; ``products`` makes their matrix products fit the BLAS that is there,
``arrangement`` chooses how, and ``threads`` shares the work among threads.
"""
