"""Scoring: the only code that runs a model."""
