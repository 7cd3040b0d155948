#!/usr/bin/env bash
# Installs what is missing, then checks style, types and behaviour.
#
#   bash run_scripts/test.sh           without the tests marked slow
#   bash run_scripts/test.sh --all     all tests
#   bash run_scripts/test.sh ARG...    further arguments go to pytest: tests/data -k tsv
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SELECTION=(-m "not slow")
case ${1:-} in
    -h | --help) print_help; exit 0 ;;
    --all) SELECTION=(); shift ;;
esac
use_environment test
cd "$ROOT"
# Tests are small: more threads than one cost more than they bring.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

run ruff check .
run ruff format --check .
run mypy
# A file's tests stay in one process, since they share what is slow to make.
run python -m pytest --numprocesses auto --dist loadfile "${SELECTION[@]}" "$@"
