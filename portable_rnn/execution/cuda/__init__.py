"""The time loop as launches of CuPy, with kernels of its own."""
