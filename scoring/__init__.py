"""How good captions are: the metrics, what they compare with, how sure to be of them, and the report."""
