"""The frozen base, the adapter on it, and how its layers run."""
