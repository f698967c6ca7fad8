"""The name under which other programs know the metrics; nothing here imports it."""

from scoring.metrics import ptb_tokenize, score

__all__ = ["ptb_tokenize", "score"]
