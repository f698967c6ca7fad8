"""The two ways in which a command fails on purpose; everything else is a bug and shows its traceback."""


class UsageError(Exception):
    """Wrong use: a bad flag, configuration or checkpoint, a missing or damaged input.  Exit code 2."""


class RunError(Exception):
    """It failed while running: no disk space, no connection, too many bad pictures.  Exit code 1."""
