"""Importing this package gives fairseq's `polynomial_decay` its `--warmup-ratio`."""

from . import polynomial_decay as polynomial_decay
