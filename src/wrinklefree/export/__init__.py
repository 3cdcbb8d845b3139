"""Ternarise once, write, and verify what was written."""
