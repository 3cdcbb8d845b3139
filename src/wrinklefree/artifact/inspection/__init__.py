"""What is in a model file or directory, for `wf inspect`."""
