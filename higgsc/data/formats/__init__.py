"""Readers of data files: one module a format, and `reading`, which chooses among them."""
