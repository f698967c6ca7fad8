"""What every script uses and no subject owns: options, files, errors, signals, processes, devices."""

__version__ = "1.0.0"  # of the whole project; pyproject.toml reads it here, CITATION.cff repeats it
