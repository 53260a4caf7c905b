"""Tests; a package so that the harness in it can be imported and run."""
