"""The service: sessions on a bus, around the engine, until their last maps are published."""
