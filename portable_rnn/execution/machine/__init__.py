"""The time loop as one function of machine code (extra ``[fast]``)."""
