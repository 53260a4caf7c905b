"""Comparable measurements, and how to rerun them."""
