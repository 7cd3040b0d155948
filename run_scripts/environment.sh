# shellcheck shell=bash
# The Python environment: found, or made. Sourced by common.sh.

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3 python; do
        # A name may be there and not work (version managers install such).
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "found neither python3.11 nor python3.12" \
        "install one of them, or set OFA_PYTHON to one that has the package installed"
}

PACKAGE_EXTRAS=() # of setup.py, which a script's options need

# use_environment [EXTRA]: PYTHON, and PATH with the commands that belong to it; installs the package with the extra.
use_environment() {
    local prefix extras=(${1:+"$1"} "${PACKAGE_EXTRAS[@]}")
    if [[ -n ${OFA_PYTHON:-} ]]; then
        PYTHON=$(command -v "$OFA_PYTHON") || fail "OFA_PYTHON=$OFA_PYTHON: no such command"
        export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    else
        if [[ -n ${VIRTUAL_ENV:-} ]]; then
            prefix=$VIRTUAL_ENV
        elif [[ -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} != base ]]; then
            prefix=$CONDA_PREFIX
        else
            prefix=$ROOT/.venv
        fi
        PYTHON=$prefix/bin/python
        one_at_a_time "$ROOT/runs/install.lock" install_package "$prefix" "$(IFS=,; echo "${extras[*]}")"
    fi
    PATH=$(dirname "$PYTHON"):$PATH
    export PATH
}

# one_at_a_time LOCK COMMAND...: of several processes that start together, the others wait.
one_at_a_time() {
    if [[ -n $DRY_RUN ]] || ! command -v flock >/dev/null; then
        "${@:2}"
        return
    fi
    mkdir -p "$(dirname "$1")"
    (
        flock 9
        "${@:2}"
    ) 9>"$1"
}

install_package() {
    local prefix=$1 extra=$2 log=$ROOT/runs/install.log base wanted stamp
    stamp=$prefix/ofa_fairseq_installed${extra:+_$extra}
    wanted="$ROOT $(cksum <"$ROOT/setup.py")"
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi
    begin_part "installation"
    echo "into $prefix, which takes some minutes; log: $log"
    if [[ -n $DRY_RUN ]]; then return; fi
    if [[ $prefix == "$ROOT/.venv" ]] && ! "$prefix/bin/python" -m pip --version >/dev/null 2>&1; then
        base=$(find_python)
        "$base" -m venv --clear "$prefix" >"$log" 2>&1 ||
            fail "$base -m venv $prefix failed (on Debian and Ubuntu it is a package: apt install python3-venv)" \
                "$(tail -n 5 "$log")"
    fi
    "$prefix/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$prefix/bin/python is older than Python 3.11; leave that environment, or activate another"
    if ! { "$prefix/bin/python" -m pip install -e "$ROOT${extra:+[$extra]}" &&
        "$prefix/bin/python" -c 'import torch, torchvision, fairseq'; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "the installation failed; the whole log is in $log"
    fi
    end_part
    echo "$wanted" | tee "$stamp" >"$prefix/ofa_fairseq_installed"
}
