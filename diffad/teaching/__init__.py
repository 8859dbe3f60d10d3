"""From good pictures to a checkpoint."""
