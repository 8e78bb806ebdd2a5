"""From bytes to a tree with positions: YAML 1.2, its limits, its errors in our words, secrets kept out."""
