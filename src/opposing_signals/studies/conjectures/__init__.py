"""What the paper conjectures and does not draw."""
