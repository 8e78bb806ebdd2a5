"""A model behind HTTP: one thread speaks, a bounded queue waits, everything that comes in has a limit."""
