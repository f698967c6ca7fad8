"""A training run: its configuration, loop, steps, sampling and loading, checkpoints and log."""
