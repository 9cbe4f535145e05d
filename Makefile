# The commands of this repository; `make help` lists them. Commands that need the locked Python environment make
# it in .venv first, once for each requirements.lock.
#
#   make train ARGS="--data 'my images' --mix gmix"    ARGS are parsed by the shell
#   make test ARGS="tests/test_packaging.py -n 0"
#   make env PYTHON=python3.12                         the interpreter for a new .venv

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help env train test bounds day soak figures lint format wheel lock audit sbom image clean

ENV_PYTHON := .venv/bin/python
# Tests run in parallel, one process per core, each with up to 2 GB of memory. ARGS="-n 0" runs them in sequence.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

help: ## list the commands
	@sed -n 's/^\([a-z]*\):[^#]*## /\1 /p' Makefile | while read -r name text; do \
	    printf '  make %-8s %s\n' "$$name" "$$text"; done

train: env ## train (ARGS are the trainer's options; without them, the demo run)
	$(ENV_PYTHON) train_imagenet.py $(value ARGS)

test: env ## run the tests (ARGS are pytest's options)
	$(ENV_PYTHON) -m pytest $(PARALLEL) $(value ARGS)

bounds: env ## run the kernels' tests with bounds checks (NUMBA_BOUNDSCHECK)
	NUMBA_BOUNDSCHECK=1 $(ENV_PYTHON) -m pytest $(PARALLEL) -W error::pytest.PytestUnraisableExceptionWarning \
		tests/test_kernel.py tests/test_entry_points.py tests/test_properties.py tests/test_masks.py tests/test_headers.py \
		tests/test_scaled_geometry.py

# If it is killed, its folder stays among the system's temporary files.
day: env ## run every stage of the GPU day, small and on the CPU (benchmarks/gpu_day)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	    $(ENV_PYTHON) -m benchmarks.gpu_day --device cpu --quick --budget 1800 --out "$$folder"

soak: env ## disturb one short run of the trainer, and compare it with an undisturbed one (benchmarks/soak.py)
	$(ENV_PYTHON) -m benchmarks.soak --no-save --lives 2 --cold 0 --epochs 2 --seconds 1 --seed 1 --processes 1 \
	    --disturbances checkpoint_cut SIGTERM stdout_to_head disk_full

# If it is killed, its folder stays among the system's temporary files.
figures: env ## make the paper's figures quickly, and check what they claim (ARGS are further options)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	    $(ENV_PYTHON) -m experiments all --quick --dpi 100 --output "$$folder" $(value ARGS)

lint: env ## check formatting, lint rules and types
	$(ENV_PYTHON) -m ruff format --check .
	$(ENV_PYTHON) -m ruff check .
	$(ENV_PYTHON) -m mypy

format: env ## format the code and apply automatic fixes
	$(ENV_PYTHON) -m ruff check --fix-only .
	$(ENV_PYTHON) -m ruff format .

# setuptools would also pack files of earlier builds in build/lib, so they are removed first.
wheel: env ## build the library's wheel into dist/
	rm -rf build/lib build/bdist.*
	$(ENV_PYTHON) -m build --wheel --no-isolation

# 3.11 is the oldest supported Python: the lock has its versions and, if they differ, those for newer Pythons,
# whichever Python runs this. The image's lock is the part that training needs, with the same versions.
lock: ## rewrite requirements.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	"$(or $(value PYTHON),python3)" -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	    --generate-hashes --custom-compile-command 'make lock' --group train --group dev \
	    $(value ARGS) -o requirements.lock pyproject.toml
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	    --generate-hashes --custom-compile-command 'make lock' --group train \
	    --constraint requirements.lock -o docker/requirements.lock pyproject.toml

# pip-audit is not locked, so that it is always current. --strict makes a package that the service does not know
# an error; otherwise it would count as one without vulnerabilities.
audit: ## look up known vulnerabilities of the locked packages (ARGS are pip-audit's options)
	"$(or $(value PYTHON),python3)" -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
	    -r requirements.lock $(value ARGS)

sbom: ## write the packages of the image's lock to dist/sbom.json (CycloneDX)
	"$(or $(value PYTHON),python3)" -m venv --clear build/sbom
	build/sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p dist
	build/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate \
	    --output-file dist/sbom.json docker/requirements.lock

image: ## build the image dali-msda (ARGS are options of docker build; ENGINE=podman)
	docker/build.sh $(value ARGS)

clean: ## remove build products and caches (keeps outputs/, data/ and .venv)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -name .git -o -name .venv -o -name outputs -o -name data \) -prune \
	    -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The shell script behind `make env`. .venv is ready when .venv/requirements.lock, copied there after the
# install, equals requirements.lock. An environment without that copy is completed in place if it has pip and a
# supported Python. It is rebuilt if an install was interrupted or the lock has changed.
define MAKE_ENVIRONMENT
set -eu
unset PYTHONPATH PYTHONHOME
stop() { echo "Error: $*" >&2; exit 1; }

ready() { [ -x .venv/bin/python ] && cmp -s requirements.lock .venv/requirements.lock; }
if ready; then exit 0; fi

machine="$(uname -s) $(uname -m)"
[ "$machine" = "Linux x86_64" ] ||
    stop "this machine is $machine, the locked environment (DALI, PyTorch for CUDA 12) is for Linux" \
        "x86_64; run make on such a machine, or with Docker: docker run --rm -it --platform" \
        "linux/amd64 -v \"\$PWD\":/src -w /src python:3.12 make test"

probe='
import platform, sys, sysconfig
kind, libc = platform.python_implementation(), platform.libc_ver()
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print("%s %s%s, %s" % (kind, platform.python_version(), " free-threaded" * free_threaded,
                       " ".join(libc).strip() or "no glibc"))
sys.exit(not (kind == "CPython" and (3, 11) <= sys.version_info[:2] <= (3, 13) and not free_threaded
              and libc[0] == "glibc" and tuple(map(int, libc[1].split(".")[:2])) >= (2, 28)))'
base='import sys; print(getattr(sys, "_base_executable", sys.executable))'

# A rebuilt environment keeps its interpreter, unless PYTHON is set.
candidates=${PYTHON:-python3 python3.13 python3.12 python3.11}
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- .venv/bin/python $candidates; fi
python=
bare=
found=
for name; do
    # The base interpreter, because an activated environment could be .venv itself.
    candidate=$("$name" -c "$base" 2>/dev/null) || continue
    if description=$("$candidate" -c "$probe" 2>/dev/null); then
        if "$candidate" -c 'import ensurepip' 2>/dev/null; then python=$candidate with_pip=; break; fi
        if "$candidate" -c 'import pip' 2>/dev/null; then python=$candidate with_pip=--without-pip; break; fi
        bare=${bare:-$candidate ($description)}
    else
        found="${found:+$found; }$candidate ($description)"
    fi
done
if [ -z "$python" ] && [ -n "$bare" ]; then
    version=$(expr "$bare" : '.*CPython \([0-9]*\.[0-9]*\)')
    stop "found $bare, which has neither ensurepip nor pip; .venv needs one of them;" \
        "on Debian or Ubuntu: sudo apt-get install python$version-venv"
fi
[ -n "$python" ] ||
    stop "the locked environment needs CPython 3.11, 3.12 or 3.13 with glibc 2.28 or newer; got" \
        "${found:-none (looked for $candidates)}; install one (sudo apt-get install python3.11-venv, or: uv" \
        "python install 3.13), or choose one: make env PYTHON=/path/to/python3.13"

# One install at a time: other commands, or the pip of a killed one, may still be running.
if command -v flock >/dev/null; then
    exec 9<requirements.lock
    flock --nonblock 9 || { echo "Waiting for another install into .venv"; flock 9; }
    if ready; then exit 0; fi
fi
echo "Installing the locked environment into .venv, about 9 GB, a few minutes, once ($python)"
if [ -e .venv/.incomplete ] || [ -e .venv/requirements.lock ] ||
    ! .venv/bin/python -c "import pip; $probe" >/dev/null 2>&1; then
    rm -rf .venv
    mkdir .venv
    : >.venv/.incomplete
    "$python" -m venv $with_pip .venv
fi
: >.venv/.incomplete

if .venv/bin/python -c 'import pip' 2>/dev/null; then
    set -- .venv/bin/python -m pip
else
    set -- "$python" -m pip --python .venv/bin/python
fi
# pip unpacks about 4 GB of temporary files, too much for a /tmp in memory. The lock is complete, and without what
# pyproject.toml overrides, which pip would miss.
mkdir -p .venv/tmp
TMPDIR=$PWD/.venv/tmp "$@" install --quiet --disable-pip-version-check --no-input --only-binary :all: \
    --require-hashes --no-deps -r requirements.lock ||
    stop "pip could not install requirements.lock, see above; make env starts over"
cp requirements.lock .venv/requirements.lock
rm -rf .venv/tmp .venv/.incomplete
endef

env: export MAKE_ENVIRONMENT := $(value MAKE_ENVIRONMENT)
env: ## make the environment in .venv if it is missing (PYTHON sets the interpreter)
	@sh -c "$$MAKE_ENVIRONMENT"
