"""What a model is trained for: losses that return a sum and a token count, and their curriculum."""
