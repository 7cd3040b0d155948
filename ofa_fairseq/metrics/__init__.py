"""Metrics over strings and numbers; importing this registers the `--scoring` entries with fairseq."""

from . import caption_scorers as caption_scorers
