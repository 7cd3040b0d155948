"""The OFA model: encoder, decoder, and reading released checkpoints."""
