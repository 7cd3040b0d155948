"""OFA as a fairseq plugin. Importing this package registers everything; nothing else happens at import."""

from .criterions import label_smoothed
from .metrics import caption_scorers, row_scorers
from .models import ofa
from .models.checkpoint import allow_plain_classes
from .optim import polynomial_decay
from .tasks import caption, instruct, refcoco, snli_ve, vqa

# fairseq's checkpoints hold a few plain classes beside tensors; `torch.load` stays in its safe mode.
allow_plain_classes()

__all__ = [
    "caption",
    "caption_scorers",
    "instruct",
    "label_smoothed",
    "ofa",
    "polynomial_decay",
    "refcoco",
    "row_scorers",
    "snli_ve",
    "vqa",
]
