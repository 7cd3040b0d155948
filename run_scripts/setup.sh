#!/usr/bin/env bash
# Makes the Python environment: .venv in the repository (python3.11 or python3.12), or the virtual environment that is
# active, with the package installed in editable form. Does nothing where that has been done.
#
#   bash run_scripts/setup.sh          what users need
#   bash run_scripts/setup.sh test     also what the tests need
set -euo pipefail
# shellcheck source=run_scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if (($#)) && [[ $1 == -h || $1 == --help ]]; then print_help; exit 0; fi
use_environment "${1:-}"
echo "Python: $PYTHON (activate: source $(dirname "$PYTHON")/activate)"
