# shellcheck shell=bash
# Who runs: one process, several on one machine or on several, or the tasks of a SLURM job. Sourced by common.sh.

LAUNCHER=''     # see count_processes
CPU_PROCESSES=1 # where there is no GPU

# Sets GPUS, NPROC (on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, WORLD_SIZE (of all machines), and
# LAUNCHER: single (this is the only process), torchrun, or task (this script is itself one of several SLURM tasks).
count_processes() {
    if [[ -z ${GPUS:-} ]]; then
        GPUS=0
        if [[ -x $PYTHON ]]; then GPUS=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())'); fi
    fi
    NPROC=${NPROC:-$((GPUS > 0 ? GPUS : CPU_PROCESSES))}
    NNODES=${NNODES:-1} NODE_RANK=${NODE_RANK:-0} MASTER_PORT=${MASTER_PORT:-29400}
    LAUNCHER=torchrun
    if in_slurm_step; then find_place_in_slurm; fi
    if [[ $LAUNCHER == torchrun ]]; then WORLD_SIZE=$((NNODES * NPROC)); fi
    if ((WORLD_SIZE == 1)); then LAUNCHER=single; fi
    ((NNODES == 1)) || [[ -n ${MASTER_ADDR:-} ]] ||
        fail "NNODES=$NNODES: MASTER_ADDR is missing, the address of the first machine"
    ((NODE_RANK < NNODES)) || fail "NODE_RANK=$NODE_RANK: expected 0 to $((NNODES - 1))"
    ((GPUS == 0 || NPROC <= GPUS)) || fail "NPROC=$NPROC: this machine has $GPUS GPUs"
}

# Of all processes that run this script, the one that writes what there is to be written once.
is_leader() { ((${NODE_RANK:-0} == 0)) && [[ $LAUNCHER != task || $SLURM_PROCID == 0 ]]; }

# Steps of srun have small numbers; the shells that sbatch and salloc start have none, or a special one.
in_slurm_step() { [[ -n ${SLURM_STEP_ID:-} && $SLURM_STEP_ID -lt 4000000000 ]]; }

find_place_in_slurm() {
    local tasks=${SLURM_STEP_NUM_TASKS:-${SLURM_NTASKS:-1}} nodes=${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}} hosts
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    if ((nodes > 1)); then
        hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
        MASTER_ADDR=${hosts%%$'\n'*}
    fi
    NNODES=$nodes NODE_RANK=$SLURM_NODEID
    if ((tasks > nodes)); then
        LAUNCHER=task WORLD_SIZE=$tasks NPROC=1
    fi
}

# In the shell of an allocation of several tasks: start this script in each of them, and end with it.
spread_over_slurm() {
    local tasks=${SLURM_NTASKS:-${SLURM_NNODES:-1}}
    if [[ -z ${SLURM_JOB_ID:-} ]] || in_slurm_step || ((tasks == 1)); then return 0; fi
    say "starting in $tasks SLURM tasks"
    run srun --kill-on-bad-exit=1 bash "$0" "$@"
    exit 0
}

# Run a fairseq command once for each process; worker.sh tells each its place.
launch() {
    case $LAUNCHER in
        single) run "$@" --distributed-world-size 1 ;;
        task)
            export RANK=$SLURM_PROCID LOCAL_RANK=$((SLURM_LOCALID % (GPUS > 1 ? GPUS : 1)))
            export WORLD_SIZE MASTER_PORT MASTER_ADDR=${MASTER_ADDR:-localhost}
            run bash "$ROOT/run_scripts/worker.sh" "$@"
            ;;
        torchrun)
            local place=(--standalone)
            if ((NNODES > 1)); then
                place=(--nnodes "$NNODES" --node-rank "$NODE_RANK")
                place+=(--master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
            fi
            share_cores
            run torchrun "${place[@]}" --nproc-per-node "$NPROC" --no-python bash "$ROOT/run_scripts/worker.sh" "$@"
            ;;
    esac
}

# Run another script in one process, whatever this one runs in; its parts count as parts of this one.
alone() {
    run env -u SLURM_JOB_ID -u SLURM_STEP_ID NPROC=1 NNODES=1 NODE_RANK=0 OFA_PYTHON="$PYTHON" OFA_TIMES="$TIMES" "$@"
}

# Processes on one machine would each start a thread for every core.
share_cores() {
    local cores
    cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}
}
