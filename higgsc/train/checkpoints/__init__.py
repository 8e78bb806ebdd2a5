"""What a training leaves behind and goes on from."""
