"""The time loop as calls of NumPy or torch that write into planned memory."""
