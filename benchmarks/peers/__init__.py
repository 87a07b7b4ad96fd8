"""Engines side by side: the same workloads, each in processes of its own, in turns."""
