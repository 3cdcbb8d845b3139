"""Models to learn from: one protocol, loaded lazily."""
