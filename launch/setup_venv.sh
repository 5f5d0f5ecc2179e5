#!/usr/bin/env bash
# Usage: launch/setup_venv.sh [dev]
#
# Makes a virtual environment with largebatch, unless an up-to-date one exists: the package itself as an editable
# install, its dependencies in the versions of launch/constraints.txt. The other scripts source this one. On a cluster,
# run it once on a node with a network; then the other scripts find everything in place.
#
#   dev                with the extras for tests and linters
#   LARGEBATCH_VENV    folder of the environment; default: .venv in the repository. In an existing environment, packages
#                      change to the versions of launch/constraints.txt.
#   LARGEBATCH_VENV=none    installs nothing: the scripts use the Python that is active (a container, conda, modules), into
#                      which you have installed largebatch. An installed package has no other choice.
#   PYTHON             Python 3.10 or newer to make it with; default: the first suitable one of python3, python,
#                      python3.13 ...

set -euo pipefail

# Functions run in subshells: sourcing this file sets only PATH, VIRTUAL_ENV and names that begin with largebatch_.
largebatch_find_python() (
    candidates=(python3 python python3.13 python3.12 python3.11 python3.10)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "largebatch: needs Python 3.10 or newer with its venv module; none of these qualifies: ${candidates[*]}." >&2
    echo "Install it (Debian, Ubuntu: apt-get install python3-venv), or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
)

largebatch_setup() (
    repository=$1 venv=$2 extras=$3
    stamp=$venv/.largebatch
    log=$venv/install.log
    # The inputs of an installation: any change of them installs again. An environment with "dev" serves all scripts.
    wanted() {
        echo "$repository $1"
        cat "$repository/pyproject.toml" "$repository/launch/constraints.txt"
    }
    is_current() {
        [[ -f $stamp && -x $venv/bin/python ]] &&
            { wanted "[dev]" | cmp -s - "$stamp" || { [[ -z $extras ]] && wanted "" | cmp -s - "$stamp"; }; }
    }
    if is_current; then
        return 0
    fi

    if command -v flock >/dev/null; then
        exec 9>"$venv/.lock"
        flock 9 # several nodes may share the folder
        if is_current; then
            return 0
        fi
    fi
    if [[ ! -x $venv/bin/python ]]; then
        python=$(largebatch_find_python)
        echo "largebatch: making $venv with $python ($("$python" --version))" >&2
        "$python" -m venv "$venv"
    fi
    echo "largebatch: installing largebatch$extras into $venv (minutes, the first time); log: $log" >&2
    rm -f "$stamp"
    cd "$repository"
    pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-compile -c launch/constraints.txt)
    # Tests compare with two files of timm. Its dependency torchvision would install its own build of torch; without it
    # timm cannot be imported, which accelerate's command line tries. So timm lies beside the other packages.
    oracle=(--no-deps --upgrade --target "$venv/oracles" timm)
    if ! { "${pip[@]}" -e ".$extras" && { [[ -z $extras ]] || "${pip[@]}" "${oracle[@]}"; }; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "largebatch: the installation failed, see above and $log." >&2
        return 1
    fi
    # Compile to bytecode now, on all cores; pip would use one. On the first import, eight ranks would compile torch eight
    # times, and with PYTHONDONTWRITEBYTECODE at every start. Packages that a run never imports are left out. Files that
    # cannot be compiled are no failure: some packages contain templates that are no Python.
    later='/(tests|transformers/models|jax|jaxlib|optax|plotly|pandas|pip|setuptools|mypy|mypyc|networkx|playwright)/'
    "$venv/bin/python" -m compileall -q -j 0 -x "$later" "$venv"/lib/python*/site-packages "$venv"/oracles \
        >>"$log" 2>&1 || true
    wanted "$extras" >"$stamp"
)

largebatch_repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
largebatch_extras=
if [[ ${1:-} == dev ]]; then
    largebatch_extras="[dev]"
elif [[ ${BASH_SOURCE[0]} == "$0" && $# -gt 0 ]]; then
    echo "largebatch: $* is not an argument of $0. Give dev, or no argument." >&2
    exit 2
fi
if [[ ${LARGEBATCH_VENV:-} == none || ! -f $largebatch_repository/pyproject.toml ]]; then
    if ! command -v python >/dev/null || ! python -c 'import importlib.util, sys
import largebatch
absent = [name for name in ("torch", "accelerate", "hydra", "wandb") if importlib.util.find_spec(name) is None]
sys.exit("largebatch: the active Python has no " + ", no ".join(absent) if absent else 0)'; then
        echo "largebatch: LARGEBATCH_VENV=none uses the active Python: $(command -v python || echo "there is no command python")." >&2
        echo "Activate the right environment, or install there: python -m pip install largebatch, or -e FOLDER." >&2
        exit 2
    fi
    # shellcheck disable=SC2317 # sourced, or a command of its own
    return 0 2>/dev/null || exit 0
fi
VIRTUAL_ENV=${LARGEBATCH_VENV:-$largebatch_repository/.venv}
mkdir -p "$VIRTUAL_ENV"
VIRTUAL_ENV=$(cd "$VIRTUAL_ENV" && pwd)
largebatch_setup "$largebatch_repository" "$VIRTUAL_ENV" "$largebatch_extras"
export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
unset PYTHONHOME
