"""Time beam search among a closed set of answers against free beam search of the same length.

Both run in one process, alternating, on the same random model and pictures.

    python benchmarks/answer_search_speed.py [--arch ofa_tiny] [--answers 3129] [--batch 8] [--beam 5] [--length 3]
"""

import argparse
import random
import statistics
from typing import Any

import torch
from generation_speed import random_model, seconds

from ofa_fairseq.generation.answer_space import AnswerTrie
from ofa_fairseq.generation.generator import OFASequenceGenerator
from ofa_fairseq.models.config import PRESETS

VOCABULARY = 59_457  # of the released checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="ofa_tiny", choices=PRESETS)
    for name, value in (("answers", 3129), ("batch", 8), ("beam", 5), ("length", 3), ("pixels", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(1)
    model = random_model(args.arch, VOCABULARY)
    dictionary: Any = model.encoder.dictionary
    draw = random.Random(1)
    # As in an answer list, many begin alike.
    answers = {
        (draw.randrange(4, 600), *(draw.randrange(4, VOCABULARY) for _ in range(args.length - 1)))
        for _ in range(args.answers)
    }
    trie = AnswerTrie(sorted(answers), dictionary.eos(), len(dictionary))
    sample = {
        "net_input": {
            "src_tokens": torch.randint(4, VOCABULARY, (args.batch, 12)),
            "src_lengths": torch.full((args.batch,), 12),
            "patch_images": torch.randn(args.batch, 3, args.pixels, args.pixels),
        }
    }
    options = {"beam_size": args.beam, "min_len": args.length, "max_len_b": args.length}
    constrained = OFASequenceGenerator([model], dictionary, answer_space=trie, **options)
    free = OFASequenceGenerator([model], dictionary, **options)
    for generator in (constrained, free):
        seconds(generator, model, sample)  # warm up
    pairs = [
        (seconds(constrained, model, sample)[0], seconds(free, model, sample)[0]) for _ in range(args.repeats)
    ]
    print(
        f"{args.arch}: {args.batch} pictures, beam {args.beam}, {args.length} tokens, {len(answers)} answers"
    )
    print(f"  among answers {statistics.median(c for c, _ in pairs):8.3f} s")
    print(f"  free          {statistics.median(f for _, f in pairs):8.3f} s")
    print(
        f"  ratio         {statistics.median(c / f for c, f in pairs):8.2f}   (median of {args.repeats} pairs)"
    )


if __name__ == "__main__":
    main()
