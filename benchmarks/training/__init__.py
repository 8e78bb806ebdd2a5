"""Parts of `train_step.py`: the model's shape, the samples, and each way of training on them."""
