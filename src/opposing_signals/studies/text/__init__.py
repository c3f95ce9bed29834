"""Opposing tokens of language models: figures 7 to 9 and 45."""
