"""From checkpoints to speech: merge an adapter into its base, speak with the result, measure it."""
