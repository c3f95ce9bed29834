"""Conjectures of the paper without a figure."""
