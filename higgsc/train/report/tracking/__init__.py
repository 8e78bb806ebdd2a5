"""Tools that show the figures of a training: TensorBoard, W&B, trackio. One module each."""
