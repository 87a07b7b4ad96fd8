"""Durable functions for Python on MongoDB."""
