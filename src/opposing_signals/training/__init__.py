"""Training: one Lightning step is one optimizer step of the paper."""
