"""Published tasks for recurrent networks, one module each; ``python -m benchmarks.tasks`` runs all of them."""
