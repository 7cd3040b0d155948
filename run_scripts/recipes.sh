# shellcheck shell=bash
# What the tasks' trainings and evaluations share. Sourced by common.sh.

# ofa_nano on the embedded pictures: all that was tuned for them.
NANO_FLAGS=(
    --patch-image-size 64 --code-dict-size 512 --num-bins 128 --dropout 0.0
    --optimizer adamw --adam-betas '(0.9,0.98)' --lr 1e-3 --warmup-ratio 0.06
    --log-interval 50 --num-workers 0 --no-epoch-checkpoints --keep-best-checkpoints 1
)
CRITERION=adjust_label_smoothed_cross_entropy
LABEL_SMOOTHING=0.1
# Of a training, where there are cores for them and no GPU. Two pay in drawing only; questions were answered no sooner.
EMBEDDED_PROCESSES=1
EMBEDDED_DATA=: # what makes a task's data out of the scenes
EMBEDDED_START=caption # the task whose model embedded trainings start from, or none

embedded_model() {
    if [[ $EMBEDDED_START == none ]]; then echo none; else echo "$ROOT/runs/${EMBEDDED_START}_nano/checkpoint_best.pt"; fi
}

# choose_recipe TASK [FOLDER]: RECIPE, batch sizes and input of a training, from the script's settings: EMBEDDED_FLAGS,
# EMBEDDED_BATCH, EMBEDDED_EPOCHS, PUBLISHED, PUBLISHED_BATCH, PUBLISHED_EFFECTIVE_BATCH, BASE, LARGE.
choose_recipe() {
    local size
    EMBEDDED=''
    if [[ -z $DATA ]]; then
        [[ -z $ARCH && -z $RESTORE_FILE ]] || fail "--data is missing; --arch and --restore-file need it (see --help)"
        EMBEDDED=yes ARCH=ofa_nano RESTORE_FILE=$(embedded_model) SAVE_DIR=${SAVE_DIR:-$ROOT/runs/$1_nano}
    fi
    ARCH=${ARCH:-ofa_base}
    size=${ARCH#ofa_}
    [[ $size != nano ]] || size=own_nano # the embedded run's folder would be gone on with
    SAVE_DIR=$(absolute "${SAVE_DIR:-$ROOT/runs/${2:-$1}_$size}")
    case $ARCH in
        ofa_nano)
            RECIPE+=("${NANO_FLAGS[@]}" "${EMBEDDED_FLAGS[@]}" --max-epoch "$EMBEDDED_EPOCHS")
            BATCH_SIZE=${BATCH_SIZE:-$EMBEDDED_BATCH} EFFECTIVE_BATCH=${EFFECTIVE_BATCH:-$EMBEDDED_BATCH}
            [[ -n $EMBEDDED ]] || echo "ofa_nano trains as long as on the embedded data; other lengths after --:" \
                "-- --max-update UPDATES --max-epoch EPOCHS"
            RESTORE_FILE=${RESTORE_FILE:-none} LABEL_SMOOTHING=0.0 PRECISION=${PRECISION:-$(cpu_precision)}
            FP16=("${FP16[@]/--memory-efficient-fp16/--fp16}") # adamw needs parameters in float32
            [[ $PRECISION != *16 || " ${RECIPE[*]} " != *" --optimizer muon "* ]] ||
                fail "--precision $PRECISION: expected amp or fp32, since --optimizer muon needs the model's own parameters"
            ;;
        ofa_tiny | ofa_medium | ofa_base) RECIPE+=("${PUBLISHED[@]}" "${BASE[@]}") ;;
        ofa_large | ofa_huge) RECIPE+=("${PUBLISHED[@]}" "${LARGE[@]}") ;;
        *) fail "--arch $ARCH: expected ofa_tiny, ofa_medium, ofa_base, ofa_large, ofa_huge or ofa_nano" ;;
    esac
    BATCH_SIZE=${BATCH_SIZE:-$PUBLISHED_BATCH} EFFECTIVE_BATCH=${EFFECTIVE_BATCH:-$PUBLISHED_EFFECTIVE_BATCH}
    require_training_options
    if [[ -z $EMBEDDED ]]; then
        require_tsvs data 2
        require_bpe_dir
        [[ $RESTORE_FILE == none ]] || require_file restore-file "to train from scratch: --restore-file none"
    fi
}

# Mixed precision where the CPU calculates in bfloat16, which makes it faster.
cpu_precision() {
    if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then echo amp; else echo fp32; fi
}

# train_and_evaluate TASK FILE...: the work of a training; the files are names of embedded ones, an epoch each, the last
# for validation.
train_and_evaluate() {
    local task=$1 file paths=() criterion=(--criterion "$CRITERION")
    if [[ $CRITERION == adjust_label_smoothed_* ]]; then criterion+=(--label-smoothing "$LABEL_SMOOTHING"); fi
    TIMES=$SAVE_DIR/times.tsv
    use_environment
    spread_over_slurm "${ARGUMENTS[@]}"
    if [[ -n $EMBEDDED && $(getconf _NPROCESSORS_ONLN) -ge $EMBEDDED_PROCESSES ]]; then
        CPU_PROCESSES=$EMBEDDED_PROCESSES
    fi
    count_processes
    choose_precision
    if [[ -n $EMBEDDED ]]; then
        prepare_digits
        if [[ $EMBEDDED_START != none && ! -f $RESTORE_FILE ]]; then
            alone bash "$ROOT/run_scripts/$EMBEDDED_START/train.sh"
        fi
        "$EMBEDDED_DATA"
        for file in "${@:2}"; do paths+=("$DIGITS/$file.tsv"); done
        DATA=$(IFS=,; echo "${paths[*]}") BPE_DIR=$DIGITS
    fi
    plan_batches
    finetune "$task" "${criterion[@]}" "${RECIPE[@]}"

    is_leader || exit 0

    if [[ -n $EMBEDDED ]]; then
        alone bash "$ROOT/run_scripts/$task/evaluate.sh" --model "$SAVE_DIR/checkpoint_best.pt"
        where "data" "$DIGITS"
    fi
    where "model" "$SAVE_DIR/checkpoint_best.pt" "log" "$SAVE_DIR/train.log" \
        "curves (TensorBoard)" "$SAVE_DIR/tensorboard"
    show_times
}

prepare_digit_tasks() {
    begin_part "questions, phrases and premises"
    one_at_a_time "$DIGITS/lock" prepare digit_tasks --digits "$DIGITS"
    end_part
}

# choose_evaluation TASK [NAME]: input of an evaluation; without --data the embedded test rows, NAME.tsv (TASK_test.tsv),
# EMBEDDED is set then. Batch sizes are the script's settings EMBEDDED_BATCH and PUBLISHED_BATCH.
choose_evaluation() {
    local file
    EMBEDDED=''
    if [[ -z $DATA ]]; then
        EMBEDDED=yes DATA=$DIGITS/${2:-$1_test}.tsv BPE_DIR=$DIGITS
        BATCH_SIZE=${BATCH_SIZE:-${EMBEDDED_BATCH:-100}} PRECISION=${PRECISION:-fp32}
        for file in "$MODEL" "$DATA"; do
            [[ -f $file ]] || fail "$file is missing: first run bash run_scripts/$1/train.sh" \
                "or give --model and --data (see --help)"
        done
    fi
    BATCH_SIZE=${BATCH_SIZE:-${PUBLISHED_BATCH:-8}}
    require_evaluation_input
}

# evaluate TASK PICTURE_COLUMN FLAG...: the work of an evaluation; embedded rows are also scored by kind, beside the same
# model's scores with blank pictures and what guessing scores.
evaluate() {
    predict "$1" "${@:3}"
    scoring score_predictions "$1"
    if [[ -n $EMBEDDED ]]; then compare "$@"; fi
    show_results ${EMBEDDED:+by_kind.txt}
    where "predictions" "$PREDICTIONS" "with scores" "${PREDICTIONS%.json}.scores.tsv" \
        ${EMBEDDED:+"by kind" "$RESULTS_PATH/by_kind.txt"} "pictures with boxes" "$RESULTS_PATH/boxes"
}

# predict TASK FLAG...: the model's outputs; only the leader returns.
predict() {
    PREDICTIONS=$RESULTS_PATH/${SPLIT}_predict.json
    use_environment
    spread_over_slurm "${ARGUMENTS[@]}"
    count_processes
    choose_precision
    generate "$@" --seed 7 --log-format simple --log-interval 10
    is_leader || exit 0
}

# scoring COMMAND...: the part that makes predictions and scores of the outputs, once for a generation.
scoring() { part "scoring" "$RESULTS_PATH/scoring_finished" "$GENERATION" "$@"; }

# score_predictions TASK: PREDICTIONS and score.txt; COLLECT_FLAGS are the script's.
score_predictions() {
    prepare collect_predictions --task "$1" --generated "${GENERATED[@]}" --out "$PREDICTIONS" "${COLLECT_FLAGS[@]}" |
        keep_in "$RESULTS_PATH/score.txt"
}

# show_results FILE...: the scores, and of further files those that there are.
show_results() { say "results"; show score.txt "$@"; }

# show FILE...: those of the results that there are.
show() {
    local file
    [[ -z $DRY_RUN ]] || return 0
    for file in "$@"; do
        [[ ! -f $RESULTS_PATH/$file ]] || cat "$RESULTS_PATH/$file"
    done
}

# compare TASK PICTURE_COLUMN FLAG...: by_kind.txt of the embedded rows.
compare() {
    local task=$1 blank=$RESULTS_PATH/blank
    if [[ -z $DRY_RUN ]]; then
        mkdir -p "$blank"
        with_blank_pictures "$2" <"$DATA" >"$blank/blank.tsv"
    fi
    part "generation with blank pictures" "$blank/generation_finished" "$GENERATION" \
        run fairseq-generate "$blank/blank.tsv" --user-dir "$ROOT/ofa_fairseq" --task "$task" --path "$MODEL" \
        --selected-cols "$SELECTED_COLS" --bpe-dir "$BPE_DIR" "${@:3}" --batch-size "$BATCH_SIZE" \
        --results-path "$blank"
    part "scores by kind" "$RESULTS_PATH/comparison_finished" "$GENERATION" \
        score_by_kind "$task" "$blank/generate-test.txt"
}

# score_by_kind TASK BLANK
score_by_kind() {
    prepare score_by_kind --task "$1" --data "$DATA" --train "$DIGITS/$1_train.tsv" \
        --predictions "${GENERATED[0]}" --blank "$2" | keep_in "$RESULTS_PATH/by_kind.txt"
}

# tell_absent OUTPUTS: presence.txt, how well probabilities tell what is not in the picture.
tell_absent() {
    part "scores for absent digits" "$RESULTS_PATH/presence_finished" "$GENERATION" score_presence "$1"
    say "absent digits"
    show presence.txt
}

score_presence() { prepare presence --predictions "$1" | keep_in "$RESULTS_PATH/presence.txt"; }

# A TSV file with a black picture in a column (from 0) of every row.
with_blank_pictures() {
    local black
    black=$("$PYTHON" -P -c 'from PIL import Image
from ofa_fairseq.data.images import encode_image
print(encode_image(Image.new("RGB", (64, 64))))')
    awk -F '\t' -v OFS='\t' -v column="$(($1 + 1))" -v picture="$black" '{ $column = picture } 1'
}
