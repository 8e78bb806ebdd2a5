"""The model speaks while it learns."""
