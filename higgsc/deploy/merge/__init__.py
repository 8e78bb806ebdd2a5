"""Fold an adapter into its base, and prove that the result is what it should be."""
