#!/usr/bin/env bash
# Visual entailment: judges the hypotheses of a TSV file and scores the answers.
#
#   bash run_scripts/snli_ve/evaluate.sh
#       The model and the test rows of `train.sh` without arguments; scores are also given by kind of premise.
#
#   bash run_scripts/snli_ve/evaluate.sh --model snli_ve_base_best.pt --data snli_ve_test.tsv --bpe-dir BPE
#       The published evaluation: the three answers are scored.
#
# Writes SPLIT_predict.json, a list of {"uniq_id", "answer"}, SPLIT_predict.scores.tsv with the probability of each answer,
# and score.txt. The columns are an id, the picture, the hypothesis, the caption and the label (empty: not scored).
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

option data "" "TSV file; without it: the embedded test rows"
evaluation_options 0,2,3,4,5 "$ROOT/runs/snli_ve_nano/checkpoint_best.pt"
read_options "$@"

choose_evaluation snli_ve
COLLECT_FLAGS=()
evaluate snli_ve 2 --scoring accuracy
