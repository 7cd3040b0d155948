#!/usr/bin/env bash
# Drawing what captions say: draws a sentence.
#
#   bash run_scripts/image_gen/sample.sh "a large red seven above a small blue three"
#       Draws it nine times with the model that `train.sh` without arguments has made.
#
#   bash run_scripts/image_gen/sample.sh "a red bus on a wet street" --model image_gen_base_best.pt --bpe-dir BPE \
#           --vqgan-model-path last.ckpt --vqgan-config-path model.yaml [--clip-model-path ViT-B-16.pt]
#       With another model; ranked by CLIP, the best comes first.
#
# Writes PNG files and grid.png into --out.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=run_scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=run_scripts/image_gen/drawing.sh
source "$HERE/drawing.sh"

EMBEDDED_MODEL=$ROOT/runs/image_gen_nano/checkpoint_best.pt
option model "$EMBEDDED_MODEL" "checkpoint"
option out "$ROOT/runs/drawings" "folder of the drawings"
option bpe-dir "" "folder of the vocabulary (default: as the checkpoint says)"
option precision "" "fp16, bf16 or fp32 (default: fp16 on GPUs)"
option seed 1 "another one gives other drawings"
drawing_options
sampling_options 9 50
SENTENCE=''
if (($#)) && [[ $1 != -* ]]; then
    SENTENCE=$1
    shift
fi
[[ -z $SENTENCE || $# -eq 0 || $1 == -* ]] || fail "unexpected argument '$1': put the sentence between quotes"
read_options "$@"

# -- input -------------------------------------------------------------------------------------------------

[[ -n ${SENTENCE//[[:space:]]/} ]] || fail "expected a sentence first; see --help"
[[ $SENTENCE != *[$'\t\n']* ]] || fail "the sentence has a tab or a line break"
require_count samples
require_choice precision "${PRECISIONS[@]}"
[[ -f $MODEL ]] || fail "$MODEL is missing: first run bash run_scripts/image_gen/train.sh, or give --model"
require_file model
require_bpe_dir
EMBEDDED=''
choose_drawing
OUT=$(absolute "$OUT")
if [[ $MODEL == "$EMBEDDED_MODEL" ]]; then GUIDANCE=${GUIDANCE:-$EMBEDDED_GUIDANCE}; fi

# -- work --------------------------------------------------------------------------------------------------

use_environment
NPROC=1
count_processes
choose_precision
DATA=$OUT/caption.tsv SPLIT=test SELECTED_COLS=0,1 BATCH_SIZE=1
if [[ -z $DRY_RUN ]]; then
    mkdir -p "$OUT"
    rm -f "$OUT/generation_finished" # of another sentence, perhaps
    printf '1\t%s\n' "$SENTENCE" >"$DATA"
fi
draw "$OUT" --seed "$SEED" --beam "$SAMPLES" --nbest "$SAMPLES" --guidance "${GUIDANCE:-1}"
prepare contact_sheet --pictures "$OUT/drawings/pictures.tsv" --out "$OUT/grid.png"
where "drawings" "$OUT/drawings/all_results" "as a grid" "$OUT/grid.png"
