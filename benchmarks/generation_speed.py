"""Time beam search on the incremental decoder against recomputing the whole prefix at every step.

Both run in one process, alternating, on the same random model and pictures, and must find the same tokens.

    python benchmarks/generation_speed.py [--arch ofa_nano] [--batch 16] [--beam 5] [--length 20] [--pixels 64]
"""

import argparse
import statistics
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from ofa_fairseq.generation.generator import OFAEnsemble, OFASequenceGenerator
from ofa_fairseq.models.config import PRESETS, RECIPE_SWITCHES, apply_preset
from ofa_fairseq.models.ofa import OFAModel


class RecomputingEnsemble(OFAEnsemble):
    """Forgets everything between steps."""

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], incremental_states: list[Any], temperature: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        nothing: list[Any] = [None] * len(incremental_states)
        return super().forward_decoder(tokens, encoder_outs, nothing, temperature)

    def reorder_incremental_state(self, incremental_states: list[Any], new_order: Tensor) -> None:
        pass


def random_model(arch: str, vocabulary: int, **options: Any) -> OFAModel:
    dictionary = Dictionary()
    for i in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"word{i}")
    cfg = Namespace(**RECIPE_SWITCHES, **options)
    apply_preset(arch, cfg)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return OFAModel.build_model(cfg, task).eval()


def seconds(
    generator: OFASequenceGenerator, model: OFAModel, sample: dict[str, Any]
) -> tuple[float, list[Any]]:
    start = time.perf_counter()
    hypotheses = generator.generate([model], sample)
    return time.perf_counter() - start, [h["tokens"].tolist() for row in hypotheses for h in row]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="ofa_nano", choices=PRESETS)
    parser.add_argument("--vocabulary", type=int, default=2000)
    for name, value in (("batch", 16), ("beam", 5), ("length", 20), ("pixels", 64), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(1)
    model = random_model(args.arch, args.vocabulary)
    source = torch.randint(4, args.vocabulary, (args.batch, 8))
    sample = {
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((args.batch,), 8),
            "patch_images": torch.randn(args.batch, 3, args.pixels, args.pixels),
            "patch_masks": torch.ones(args.batch, dtype=torch.bool),
        }
    }
    # Every output has the full length, so that both do the same work.
    options = {"beam_size": args.beam, "min_len": args.length, "max_len_b": args.length}
    fast = OFASequenceGenerator([model], model.encoder.dictionary, **options)
    slow = OFASequenceGenerator([model], model.encoder.dictionary, **options)
    slow.model = RecomputingEnsemble([model], args.beam)
    seconds(fast, model, sample)  # warm up
    pairs = []
    for _ in range(args.repeats):
        (fast_time, fast_tokens), (slow_time, slow_tokens) = (seconds(g, model, sample) for g in (fast, slow))
        if fast_tokens != slow_tokens:
            raise AssertionError("the two found different tokens")
        pairs.append((fast_time, slow_time))
    print(
        f"{args.arch}: {args.batch} pictures of {args.pixels} pixels, beam {args.beam}, {args.length} tokens"
    )
    print(f"  incremental   {statistics.median(f for f, _ in pairs):8.3f} s")
    print(f"  recomputing   {statistics.median(s for _, s in pairs):8.3f} s")
    print(
        f"  ratio         {statistics.median(s / f for f, s in pairs):8.1f}   (median of {args.repeats} pairs)"
    )


if __name__ == "__main__":
    main()
