"""Inputs that isolate a feature: figures 5 and 10 to 31."""
