"""The points whose loss changes most: figures 46 to 54."""
