"""Who else is measured: each in its own best ordinary setting, on the same work."""
