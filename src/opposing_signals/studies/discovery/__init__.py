"""Whether the search finds pairs that are known."""
