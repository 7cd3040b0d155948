"""Time drawing: does the last code of a picture take longer than the first, and what would recomputing cost?

The incremental decoder draws whole pictures. Recomputing the prefix is timed at every `--stride`-th code, alternating
with the incremental decoder's same codes, and summed up for all.

    python benchmarks/drawing_speed.py [--arch ofa_tiny] [--captions 1] [--samples 4] [--side 256]
"""

import argparse
import statistics
import time
from typing import Any

import torch
from fairseq.search import Sampling
from generation_speed import random_model
from torch import Tensor

from ofa_fairseq.generation.answer_space import TokenRange
from ofa_fairseq.generation.generator import OFAEnsemble, OFASequenceGenerator
from ofa_fairseq.models.config import PRESETS

CODES = 8192


class TimedEnsemble(OFAEnsemble):
    """Notes when each step begins; every `stride`-th one also times its prefix computed anew.

    The time that this takes is no part of the step.
    """

    stride = 0
    begun: list[float] = []
    anew: list[float] = []

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: list[Any], incremental_states: list[Any], temperature: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        self.begun.append(time.perf_counter() - sum(self.anew))
        if self.stride and (len(self.begun) - 1) % self.stride == 0:
            nothing: list[Any] = [None] * len(incremental_states)
            start = time.perf_counter()
            super().forward_decoder(tokens, encoder_outs, nothing, temperature)
            self.anew.append(time.perf_counter() - start)
        return super().forward_decoder(tokens, encoder_outs, incremental_states, temperature)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="ofa_tiny", choices=PRESETS)
    parser.add_argument("--vocabulary", type=int, default=59_457, help="as released (default)")
    for name, value in (("captions", 1), ("samples", 4), ("side", 256), ("repeats", 3), ("stride", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(1)
    model = random_model(args.arch, args.vocabulary, code_image_size=args.side)
    length = (args.side // 8) ** 2
    dictionary: Any = model.decoder.dictionary
    codes = TokenRange(args.vocabulary - CODES, args.vocabulary, args.vocabulary, length, dictionary.eos())
    generator = OFASequenceGenerator(
        [model],
        dictionary,
        beam_size=args.samples,
        min_len=length,
        max_len_b=length,
        gen_code=True,
        search_strategy=Sampling(dictionary, sampling_topk=256),
    )
    timed = TimedEnsemble([model], args.samples, codes, gen_code=True)
    generator.model = timed
    source = torch.randint(4, args.vocabulary - CODES, (args.captions, 16))
    sample = {
        "net_input": {"src_tokens": source, "src_lengths": torch.full((args.captions,), 16)},
    }
    firsts, lasts, totals = [], [], []
    tenth = max(1, length // 10)
    for _ in range(args.repeats):
        timed.begun, timed.anew, timed.stride = [], [], 0
        generator.generate([model], sample)
        steps = [after - before for before, after in zip(timed.begun, timed.begun[1:])]
        firsts.append(statistics.mean(steps[:tenth]))
        lasts.append(statistics.mean(steps[-tenth:]))
        totals.append(sum(steps))
    timed.begun, timed.anew, timed.stride = [], [], args.stride
    generator.generate([model], sample)
    incremental = timed.begun[-1] - timed.begun[0]
    recomputing = sum(timed.anew) * args.stride
    print(f"{args.arch}: {args.captions} captions, {args.samples} samples of each, {length} codes")
    print(f"  a picture's codes     {statistics.median(totals):8.3f} s")
    print(f"  one of the first 10 % {1e3 * statistics.median(firsts):8.3f} ms")
    print(f"  one of the last 10 %  {1e3 * statistics.median(lasts):8.3f} ms")
    ratios = [last / first for first, last in zip(firsts, lasts)]
    print(f"  ratio                 {statistics.median(ratios):8.2f}    (median of {args.repeats} runs)")
    print(
        f"  recomputing prefixes  {recomputing / incremental:8.1f}    times the time, every {args.stride}th code timed"
    )


if __name__ == "__main__":
    main()
