"""Benchmarks of streamline next to the raw driver, and to DBOS, in one run on one machine."""
