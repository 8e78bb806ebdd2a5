"""What is wrong with a key or a value, in words: what was meant, and the way out."""
