"""Block diffusion against autoregressive decoding of the same packed model: speed, quality, and the cost of rows."""
