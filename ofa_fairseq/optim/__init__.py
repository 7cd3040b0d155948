"""Importing this package registers `adamw` and `muon`, and gives fairseq's `polynomial_decay` its `--warmup-ratio`."""

from . import adamw as adamw
from . import muon as muon
from . import polynomial_decay as polynomial_decay
