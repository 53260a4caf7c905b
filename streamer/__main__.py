"""`python -m streamer` is `abinitio-live`."""

from streamer.cli import main

__all__: list[str] = []

main()
