"""The command line `portable-rnn`: it prints and computes nothing itself."""

from .entry import build_parser, main

__all__ = ["build_parser", "main"]
