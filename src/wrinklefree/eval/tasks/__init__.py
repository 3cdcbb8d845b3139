"""Tasks with right answers: lm-evaluation-harness through its Python API, on any `Scorer`. The only door to it."""
