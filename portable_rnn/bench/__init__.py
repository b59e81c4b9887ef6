"""The speed benchmark behind `portable-rnn bench`: what is timed, how it is timed, and what is made of the times.

Each module imports only from those above it: `cases` (what is timed), `libraries` (this library, PyTorch and the
matrix product as tasks), `workers` (processes that take turns), `report` (ratios, targets, slowdowns), `picture`,
`command`.
"""

from .command import add_options, bench

__all__ = ["add_options", "bench"]
