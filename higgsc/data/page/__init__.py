"""What the reports for a browser are made of: one style, one frame, players and pictures."""
