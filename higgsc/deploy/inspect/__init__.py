"""Looking at checkpoints and adapters: what there is, whether it is whole, how far apart two of them are."""
