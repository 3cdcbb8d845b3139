"""`wf serve` under load, beside llama-server: speed, latency, correct answers in a crowd, floods, long runs."""
