"""GGUF files: the container, the bytes of its tensor types, and what a model is called in it."""
