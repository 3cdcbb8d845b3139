"""Sources -> documents -> token stream -> packed sequences, with a resumable position."""
