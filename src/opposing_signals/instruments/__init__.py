"""Lightning callbacks that measure θ_t before the step and write what they see into the run's record, one file each."""
