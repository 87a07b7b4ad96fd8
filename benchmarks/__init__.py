"""Benchmarks of streamline next to the raw driver, on one mongod, in one run."""
