# shellcheck shell=bash
# What all scripts share; sourced by them, never run. In the order in which a script uses it:
#
#   option NAME DEFAULT HELP     declare --NAME, also the environment's OFA_NAME; the value is in $NAME (upper case)
#   read_options "$@"            --help prints the script's head comment and the options; EXTRA is what follows "--"
#   require_* ...                refuse bad input before anything starts
#   use_environment [EXTRA]      a Python with everything installed
#   spread_over_slurm "$@"       in a SLURM allocation: one of these scripts in each task
#   count_processes              who runs: GPUS, NPROC, WORLD_SIZE, is_leader
#   finetune TASK FLAG...        the whole of a training; generate TASK FLAG...: of an evaluation
#   part NAME STAMP KEY CMD...   do something once, and note how long it took
#
# A task's script is its settings and calls to these.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: these scripts need bash 4.4 or newer, this is $BASH_VERSION" >&2
    exit 2
fi

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-}
# shellcheck source=run_scripts/environment.sh
source "$ROOT/run_scripts/environment.sh"
# shellcheck source=run_scripts/launcher.sh
source "$ROOT/run_scripts/launcher.sh"
# shellcheck source=run_scripts/recipes.sh
source "$ROOT/run_scripts/recipes.sh"

# -- talking -----------------------------------------------------------------------------------------------

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$1" >&2
    (($# < 2)) || printf '       %s\n' "${@:2}" >&2
    exit 2
}

# Show a command in a form that can be pasted, and run it unless DRY_RUN is set.
run() {
    local word line=+
    for word in "$@"; do
        [[ $word =~ ^[a-zA-Z0-9_./,:=+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    printf '%s\n' "$line" >&2
    [[ -n $DRY_RUN ]] || "$@"
}

# -- options -----------------------------------------------------------------------------------------------

OPTION_NAMES=() OPTION_DEFAULTS=() OPTION_HELP=() EXTRA=() ARGUMENTS=()

variable_of() { local name=${1//-/_}; echo "${name^^}"; }

option() {
    local variable environment
    variable=$(variable_of "$1")
    environment=OFA_$variable
    OPTION_NAMES+=("$1") OPTION_DEFAULTS+=("$2") OPTION_HELP+=("$3")
    printf -v "$variable" '%s' "${!environment:-$2}"
}

read_options() {
    local name value
    ARGUMENTS=("$@")
    while (($#)); do
        case $1 in
            -h | --help) print_help; exit 0 ;;
            --) EXTRA=("${@:2}"); return ;;
            --*=*) name=${1%%=*} value=${1#*=}; shift ;;
            --*) (($# > 1)) || fail "$1: expected a value"; name=$1 value=$2; shift 2 ;;
            *) fail "unexpected argument '$1'; see --help" ;;
        esac
        name=${name#--}
        [[ " ${OPTION_NAMES[*]} " == *" $name "* ]] ||
            fail "unknown option --$name; expected: ${OPTION_NAMES[*]/#/--}" "further flags of fairseq go after --"
        [[ -n $value ]] || fail "--$name: expected a value, got an empty one"
        printf -v "$(variable_of "$name")" '%s' "$value"
    done
}

print_help() {
    local i default
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
    if ((${#OPTION_NAMES[@]})); then
        printf '\nOptions (in brackets: the default); in the environment, --some-name can be given as OFA_SOME_NAME\n'
        for i in "${!OPTION_NAMES[@]}"; do
            default=${OPTION_DEFAULTS[i]}
            printf '  --%-18s %s%s\n' "${OPTION_NAMES[i]}" "${OPTION_HELP[i]}" "${default:+ [$default]}"
        done
        printf '  -- FLAG...           further flags of fairseq; they win over those of the recipe\n'
    fi
    cat <<'END'

Environment, for all scripts
  OFA_PYTHON           a Python with everything installed, used as it is (default: the active virtual environment, else
                       .venv in the repository, which is made; the package is installed into either)
  NPROC                processes on this machine [as many as PyTorch sees GPUs, else 1]
  NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
                       several machines: start the script on each with its NODE_RANK, from 0, and the address of the
                       first as MASTER_ADDR [port 29400]; the folders in use must be shared
  SLURM                in an allocation (sbatch, salloc) of several tasks, or under srun, the script finds its place by
                       itself: one task a process, or one task a machine
  GPUS                 GPUs on this machine [as many as PyTorch sees]
  DRY_RUN=1            check the input and show the commands, run nothing
END
}

# -- checking the input ------------------------------------------------------------------------------------

absolute() { if [[ $1 == /* ]]; then echo "$1"; else echo "$PWD/$1"; fi; }

# require_file OPTION [HINT]: the option's file exists; its value becomes an absolute path.
require_file() {
    local variable
    variable=$(variable_of "$1")
    [[ -n ${!variable} ]] || fail "--$1 is missing; see --help" "${@:2}"
    [[ -f ${!variable} ]] || fail "--$1 ${!variable}: no such file" "${@:2}"
    printf -v "$variable" '%s' "$(absolute "${!variable}")"
}

# require_columns OPTION FILE: the first line of the option's file has the selected columns.
require_columns() {
    local column last=0 count
    [[ $SELECTED_COLS =~ ^[0-9]+(,[0-9]+)*$ ]] ||
        fail "--selected-cols $SELECTED_COLS: expected column numbers such as 0,4,2 (from 0)"
    for column in ${SELECTED_COLS//,/ }; do
        if ((10#$column > last)); then last=$((10#$column)); fi
    done
    count=$(awk -F '\t' '{ print NF; exit }' "$2")
    ((count > last)) ||
        fail "--$1: $2, line 1: $count columns between tabs, expected $((last + 1)) for --selected-cols $SELECTED_COLS"
}

# require_tsvs OPTION MINIMUM: the option's comma-separated files exist and have the columns; paths become absolute.
require_tsvs() {
    local variable file files=() paths=()
    variable=$(variable_of "$1")
    IFS=, read -ra files <<<"${!variable}"
    ((${#files[@]} >= $2)) || fail "--$1 '${!variable}': expected at least $2 comma-separated TSV files"
    for file in "${files[@]}"; do
        [[ -f $file ]] || fail "--$1: no such file: '$file'"
        [[ -s $file ]] || fail "--$1: $file is empty"
        require_columns "$1" "$file"
        paths+=("$(absolute "$file")")
    done
    printf -v "$variable" '%s' "$(IFS=,; echo "${paths[*]}")"
}

# The folder of the vocabulary, if one is given, is complete.
require_bpe_dir() {
    [[ -n $BPE_DIR ]] || return 0
    [[ -f $BPE_DIR/dict.txt ]] || fail "--bpe-dir $BPE_DIR: there is no dict.txt"
    [[ -f $BPE_DIR/sentencepiece.model || (-f $BPE_DIR/vocab.bpe && -f $BPE_DIR/encoder.json) ]] ||
        fail "--bpe-dir $BPE_DIR: expected vocab.bpe and encoder.json (GPT-2), or sentencepiece.model"
    BPE_DIR=$(absolute "$BPE_DIR")
}

# require_choice OPTION VALUE...: the option is not set, or has one of the values.
require_choice() {
    local variable
    variable=$(variable_of "$1")
    [[ -z ${!variable} || " ${*:2} " == *" ${!variable} "* ]] || fail "--$1 ${!variable}: expected one of: ${*:2}"
}

# require_count OPTION
require_count() {
    local variable
    variable=$(variable_of "$1")
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || fail "--$1 ${!variable}: expected a whole number above 0"
}

# -- parts and their times ---------------------------------------------------------------------------------

PART='' PART_START=0
TIMES=${OFA_TIMES:-} # the file of times; set by the script once it knows its folder

begin_part() { PART=$1 PART_START=$SECONDS; say "$1"; }

end_part() {
    [[ -n $PART ]] || return 0
    if [[ -n $TIMES && -z $DRY_RUN ]] && is_leader; then
        mkdir -p "$(dirname "$TIMES")"
        printf '%s\t%s\n' "$PART" "$((SECONDS - PART_START))" >>"$TIMES"
    fi
    PART=''
}
trap end_part EXIT # an interrupted part took its time, too

# Run a command, unless the file STAMP says that it ended well with the same KEY before.
part() {
    local name=$1 stamp=$2 key=$3
    if [[ -z $DRY_RUN && -f $stamp && $(<"$stamp") == "$key" ]]; then
        say "$name: done before ($stamp)"
        return
    fi
    begin_part "$name"
    "${@:4}"
    end_part
    if [[ -z $DRY_RUN ]] && is_leader; then printf '%s\n' "$key" >"$stamp"; fi
}

show_times() {
    [[ -f $TIMES ]] || return 0
    say "time, all starts of this run together"
    awk -F '\t' '!($1 in sum) { order[++n] = $1 } { sum[$1] += $2; all += $2 }
        END {
            for (i = 1; i <= n; i++) printf "  %-16s %6d s\n", order[i], sum[order[i]]
            printf "  %-16s %6d s\n", "together", all
        }' "$TIMES"
}

# where LABEL PATH...: say where results are.
where() {
    while (($#)); do
        [[ ! -e $2 ]] || printf '  %-24s %s\n' "$1" "$2"
        shift 2
    done
}

# Pass text on and keep it in a file.
keep_in() {
    if [[ -n $DRY_RUN ]]; then cat; else tee "$1.part" && mv "$1.part" "$1"; fi
}

# -- the embedded data ---------------------------------------------------------------------------------------

# -P: a folder of the same name where the user happens to be is not meant.
prepare() { run "$PYTHON" -P -m ofa_fairseq.prepare "$@"; }

DIGITS=$ROOT/data/digits

prepare_digits() {
    begin_part "data"
    one_at_a_time "$DIGITS/lock" prepare digits --out "$DIGITS"
    end_part
}

# -- recipes -----------------------------------------------------------------------------------------------

# The published recipes have these in common; a task's own flags come after them and win.
RECIPE=(
    --optimizer adam --adam-betas '(0.9,0.999)' --adam-eps 1e-08 --weight-decay 0.01 --clip-norm 1.0
    --lr-scheduler polynomial_decay --warmup-ratio 0.06
    --dropout 0.1 --attention-dropout 0.0 --resnet-drop-path-rate 0.0
    --max-src-length 80 --num-bins 1000
    --find-unused-parameters --fixed-validation-seed 7 --log-format simple --log-interval 10
)
SWITCHES=(
    --encoder-normalize-before --decoder-normalize-before --share-decoder-input-output-embed --share-all-embeddings
    --layernorm-embedding --patch-layernorm-embedding --code-layernorm-embedding --add-type-embedding
    --scale-attn --scale-fc --scale-heads --disable-entangle
)
FREEZE_EMBEDDINGS=(--freeze-encoder-embedding --freeze-decoder-embedding)
# Save and validate every 500 updates and every epoch; of the files in between only the last is kept.
SAVE_OFTEN=(
    --no-epoch-checkpoints --keep-best-checkpoints 1 --save-interval 1 --validate-interval 1
    --save-interval-updates 500 --validate-interval-updates 500 --keep-interval-updates 1
)

# training_options COLUMNS: options that every training has; the script declares its own before.
training_options() {
    option selected-cols "$1" "columns of the TSV files, from 0, in the task's order"
    option bpe-dir "" "folder of dict.txt and the subword model (default: GPT-2's public files, downloaded once)"
    option save-dir "" "folder of the run (default: runs/...); one that was interrupted goes on where it was"
    option batch-size "" "largest batch of one process"
    option effective-batch "" "rows of an update over all processes, kept by --update-freq and a smaller --batch-size"
    option precision "" "fp16, bf16, amp (mixed) or fp32 (default: fp16 on GPUs)"
}

# The values of `training_options` make sense.
require_training_options() {
    require_count batch-size
    require_count effective-batch
    require_choice precision "${PRECISIONS[@]}"
}

PRECISIONS=(fp16 bf16 amp fp32)
FP16=(--fp16 --fp16-scale-window 512)

# PRECISION_FLAGS; the default is as published where there is a GPU.
choose_precision() {
    if ((GPUS > 0)); then PRECISION=${PRECISION:-fp16}; else PRECISION=${PRECISION:-fp32}; fi
    case $PRECISION in
        fp16) PRECISION_FLAGS=("${FP16[@]}") ;;
        bf16) PRECISION_FLAGS=(--bf16) ;;
        amp) PRECISION_FLAGS=(--amp) ;;
        fp32) PRECISION_FLAGS=() ;;
    esac
}

# BATCH_FLAGS such that processes x batch x accumulation comes as near to the recipe's effective batch as it can.
plan_batches() {
    local share=$((WORLD_SIZE * BATCH_SIZE))
    UPDATE_FREQ=$(((EFFECTIVE_BATCH + share - 1) / share))
    share=$((WORLD_SIZE * UPDATE_FREQ))
    BATCH_SIZE=$(((2 * EFFECTIVE_BATCH + share) / (2 * share)))
    if ((BATCH_SIZE == 0)); then BATCH_SIZE=1; fi
    echo "batch of an update: $((WORLD_SIZE * BATCH_SIZE * UPDATE_FREQ)) (recipe: $EFFECTIVE_BATCH)" \
        "= $WORLD_SIZE processes x $BATCH_SIZE rows x $UPDATE_FREQ; $PRECISION, $GPUS GPUs on this machine"
    BATCH_FLAGS=(--batch-size "$BATCH_SIZE" --update-freq "$UPDATE_FREQ")
}

# finetune TASK FLAG...: train DATA from RESTORE_FILE (none: from scratch) into SAVE_DIR, or go on there.
finetune() {
    local flags=(
        "$DATA" --user-dir "$ROOT/ofa_fairseq" --task "$1" --arch "$ARCH" --selected-cols "$SELECTED_COLS"
        --save-dir "$SAVE_DIR" --tensorboard-logdir "$SAVE_DIR/tensorboard"
        # Pictures are decoded while a GPU works; without one the cores are busy anyway.
        --num-workers "$((GPUS > 0 ? 4 : 0))"
    )
    if [[ -n $BPE_DIR ]]; then flags+=(--bpe-dir "$BPE_DIR"); fi
    # Unlike --restore-file with its --reset flags, this starts from the file once and never again.
    if [[ $RESTORE_FILE != none ]]; then flags+=(--finetune-from-model "$RESTORE_FILE"); fi
    flags+=("${@:2}" "${PRECISION_FLAGS[@]}" "${BATCH_FLAGS[@]}")
    if ((WORLD_SIZE > 1 && GPUS == 0)); then flags+=(--distributed-backend gloo --ddp-backend legacy_ddp); fi
    flags+=("${EXTRA[@]}")
    if [[ -z $DRY_RUN ]]; then mkdir -p "$SAVE_DIR"; fi
    part "training" "$SAVE_DIR/training_finished" "${flags[*]}" \
        logged "$SAVE_DIR/train.log" launch fairseq-train "${flags[@]}"
}

# logged FILE COMMAND...: output also goes to the end of the file.
logged() {
    if [[ -n $DRY_RUN ]] || ! is_leader; then "${@:2}"; else "${@:2}" 2>&1 | tee -a "$1"; fi
}

# -- evaluation --------------------------------------------------------------------------------------------

# generate TASK FLAG...: the model's outputs for DATA, each process its share. GENERATED are the files, which are
# complete when the leader returns; GENERATION tells one such run from others.
generate() {
    local flags=("$DATA" --user-dir "$ROOT/ofa_fairseq" --task "$1" --path "$MODEL" --gen-subset "$SPLIT"
        --selected-cols "$SELECTED_COLS")
    local folder=$RESULTS_PATH rank share
    if ((WORLD_SIZE > 1)); then
        share=$(($(wc -l <"$DATA") / WORLD_SIZE)) # nobody may be left without a batch
        ((share > 0)) || fail "$DATA has fewer rows than there are processes ($WORLD_SIZE)"
        if ((BATCH_SIZE > share)); then BATCH_SIZE=$share; fi
    fi
    if [[ -n $BPE_DIR ]]; then flags+=(--bpe-dir "$BPE_DIR"); fi
    flags+=("${@:2}" "${PRECISION_FLAGS[@]}" --batch-size "$BATCH_SIZE" "${EXTRA[@]}")
    GENERATION="${flags[*]} in $WORLD_SIZE processes, model of $(date -r "$MODEL" +%s 2>/dev/null || true)"
    GENERATED=("$folder/generate-$SPLIT.txt")
    if ((WORLD_SIZE > 1)); then
        # Named after what makes it: the old share of a slow process must not be taken for its new one.
        folder+=/shares-$(cksum <<<"$GENERATION" | cut -d ' ' -f 1)
        GENERATED=()
        for ((rank = 0; rank < WORLD_SIZE; rank++)); do GENERATED+=("$folder/$rank/generate-$SPLIT.txt"); done
    fi
    part "generation" "$RESULTS_PATH/generation_finished" "$GENERATION" \
        generate_shares "${flags[@]}" --results-path "$folder"
}

generate_shares() {
    local file
    launch fairseq-generate "$@"
    if [[ -n $DRY_RUN ]] || ! is_leader; then return; fi
    for file in "${GENERATED[@]}"; do
        # The score is the last thing that fairseq-generate writes.
        until grep -q '^Generate ' "$file" 2>/dev/null; do
            echo "waiting for $file"
            sleep 10
        done
    done
}

# evaluation_options COLUMNS MODEL: options that every evaluation has; the script declares its own before.
evaluation_options() {
    option selected-cols "$1" "columns of the TSV file, from 0, in the task's order"
    option model "$2" "checkpoint"
    option results-path "" "folder for the results (default: 'results' beside the model)"
    option split test "name of the results: SPLIT_predict.json"
    option bpe-dir "" "folder of the vocabulary (default: as the checkpoint says)"
    option batch-size "" "rows in a batch of one process"
    option precision "" "fp16, bf16 or fp32 (default: fp16 on GPUs)"
}

# The model and data of an evaluation are there.
require_evaluation_input() {
    require_file model
    require_file data
    [[ -s $DATA ]] || fail "--data: $DATA is empty"
    if [[ -z $EMBEDDED ]]; then require_columns data "$DATA"; fi
    require_count batch-size
    require_choice precision "${PRECISIONS[@]}"
    require_bpe_dir
    RESULTS_PATH=$(absolute "${RESULTS_PATH:-$(dirname "$MODEL")/results}")
    TIMES=${TIMES:-$RESULTS_PATH/times.tsv}
    if [[ -z $DRY_RUN ]]; then mkdir -p "$RESULTS_PATH"; fi
}
