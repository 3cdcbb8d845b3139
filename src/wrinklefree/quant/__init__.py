"""The ternary rule, int8 activations and `BitLinear`: pure functions plus thin modules."""
