"""Our engine beside the best other CPU engines for ternary models, interleaved on one machine. See README.md."""
