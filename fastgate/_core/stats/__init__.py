"""Distributions of measured values."""
