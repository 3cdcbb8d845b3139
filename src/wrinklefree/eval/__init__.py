"""Loss, perplexity, agreement and speed of any model we can load."""
