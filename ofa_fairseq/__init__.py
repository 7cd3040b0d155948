"""OFA as a fairseq plugin. Importing this package registers everything; nothing else happens at import."""

import logging
import warnings

with warnings.catch_warnings():
    # Two notes that fairseq makes while it is imported; neither is for users of this package.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    import fairseq.tasks  # noqa: F401

    # The same module has logging begin at DEBUG, at which PIL has something to say of every picture.
    logging.getLogger("PIL").setLevel(logging.INFO)

from .criterions import label_smoothed, scst
from .metrics import caption_scorers, row_scorers
from .models import ofa
from .models.checkpoint import allow_plain_classes
from .optim import adamw, muon, polynomial_decay
from .tasks import caption, image_gen, instruct, refcoco, snli_ve, vqa

# fairseq's checkpoints hold a few plain classes beside tensors; `torch.load` stays in its safe mode.
allow_plain_classes()

__all__ = [
    "adamw",
    "caption",
    "caption_scorers",
    "image_gen",
    "instruct",
    "label_smoothed",
    "muon",
    "ofa",
    "polynomial_decay",
    "refcoco",
    "row_scorers",
    "scst",
    "snli_ve",
    "vqa",
]
