"""The mathematics: particles in, maps and poses out; imports nothing of the other two packages."""
