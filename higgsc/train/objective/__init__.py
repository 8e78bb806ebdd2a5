"""What is minimised: the loss by parts, the contrastive term, and the same over held-out samples."""
