"""The Python face of the native engine. No torch, no transformers."""
