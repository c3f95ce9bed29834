"""What happens to a spike without the groups that cause it."""
