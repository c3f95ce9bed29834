"""Opposing groups and their losses: figures 1 and 36, and spikes."""
