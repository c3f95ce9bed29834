"""Lightning callbacks, one per file, that measure θ_t before the step and write to the run's record."""
