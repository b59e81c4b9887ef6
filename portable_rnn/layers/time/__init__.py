"""The time loop: one direction, stacks of layers in both, and segments that are run again."""
