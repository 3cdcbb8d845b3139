"""Ternary models in Hugging Face directories: packed BitNet, ternary floats, MLX, one file or shards."""
