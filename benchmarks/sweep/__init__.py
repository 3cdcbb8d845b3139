"""Bayesian proposals against random ones, through `wf sweep` itself."""
