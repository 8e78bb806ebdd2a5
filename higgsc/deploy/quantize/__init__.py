"""Linear weights in 8 bits, in torchao's own format: less to store and to read at each token."""
