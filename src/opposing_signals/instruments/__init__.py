"""Lightning callbacks that measure θ_t before the step and write to the run's record."""
