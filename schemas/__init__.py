"""What travels: wire models and the codec; this package imports nothing of the other two."""
