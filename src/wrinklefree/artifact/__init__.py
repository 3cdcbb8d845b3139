"""What the bytes of a model on disk mean: layouts, metadata, tokenizer, GGUF. No torch, no transformers."""
