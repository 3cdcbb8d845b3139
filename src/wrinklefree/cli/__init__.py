"""The front door: a verb, one typed function, imported when asked."""
