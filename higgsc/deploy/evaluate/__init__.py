"""What training changed: base and trained model side by side, in figures and to listen to."""
