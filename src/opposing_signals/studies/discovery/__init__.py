"""Whether the search finds known pairs."""
