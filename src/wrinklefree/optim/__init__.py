"""Optimizers, parameter groups and schedules in tokens."""
