"""The figures of training runs on a page: `wf board`. Reads what training writes, while it writes it."""
