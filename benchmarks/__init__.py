"""How fast it is, beside others on the same machine; README.md here has the figures."""
