"""Proof on this machine: a model's outputs, gradients and everything around them, checked wherever it can run."""

from .report import Check, Report
from .running import verify
from .textbook import Textbook

__all__ = ["Check", "Report", "Textbook", "verify"]
