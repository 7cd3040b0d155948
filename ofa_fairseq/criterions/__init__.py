"""Importing this package registers the criterions with fairseq (it does not look into this folder itself)."""

from . import label_smoothed as label_smoothed
from . import scst as scst
