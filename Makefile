# The commands of this repository; `make help` lists them. Each that needs the locked Python
# environment makes it in .venv first, once for each requirements.lock.
#
#   make train ARGS="--data 'my images' --mix gmix"    ARGS go to the command through the shell
#   make test ARGS="tests/test_packaging.py -n 0"
#   make env PYTHON=python3.12                         the interpreter that a new .venv is made with

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help env train test bounds lint format wheel lock audit sbom image clean

ENV_PYTHON := .venv/bin/python
# Tests run side by side, one process per core; each takes up to 2 GB of memory. ARGS="-n 0": one after another.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

help: ## list the commands
	@sed -n 's/^\([a-z]*\):[^#]*## /\1 /p' Makefile | while read -r name text; do \
	    printf '  make %-8s %s\n' "$$name" "$$text"; done

train: env ## train (ARGS are the trainer's options; without any, the demo run)
	$(ENV_PYTHON) train_imagenet.py $(value ARGS)

test: env ## run the tests (ARGS are pytest's options)
	$(ENV_PYTHON) -m pytest $(PARALLEL) $(value ARGS)

bounds: env ## run the kernels' tests with every array access checked (NUMBA_BOUNDSCHECK)
	NUMBA_BOUNDSCHECK=1 $(ENV_PYTHON) -m pytest $(PARALLEL) -W error::pytest.PytestUnraisableExceptionWarning \
		tests/test_kernel.py tests/test_entry_points.py tests/test_properties.py tests/test_masks.py tests/test_headers.py

lint: env ## check the formatting, the lint rules and the types
	$(ENV_PYTHON) -m ruff format --check .
	$(ENV_PYTHON) -m ruff check .
	$(ENV_PYTHON) -m mypy

format: env ## format the code and fix what the lint rules can fix
	$(ENV_PYTHON) -m ruff check --fix-only .
	$(ENV_PYTHON) -m ruff format .

# setuptools packs whatever an earlier build left in build/lib, so each build starts without one.
wheel: env ## build the library's wheel into dist/
	rm -rf build/lib build/bdist.*
	$(ENV_PYTHON) -m build --wheel --no-isolation

# 3.11 is the oldest supported Python: the lock holds the versions for it and, where they differ,
# those for the newer ones, whichever Python runs this. The image's lock is the part of it that training
# takes, in the same versions.
lock: ## write requirements.lock anew from pyproject.toml (ARGS=--upgrade takes newer versions)
	"$(or $(value PYTHON),python3)" -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	    --generate-hashes --custom-compile-command 'make lock' --group train --group dev \
	    $(value ARGS) -o requirements.lock pyproject.toml
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
	    --generate-hashes --custom-compile-command 'make lock' --group train \
	    --constraint requirements.lock -o docker/requirements.lock pyproject.toml

# Not in the lock: what looks at it from outside may be newer than it. --strict, because a package that the
# service does not know would pass for one without vulnerabilities otherwise.
audit: ## look up known vulnerabilities of all that is locked (ARGS are pip-audit's options)
	"$(or $(value PYTHON),python3)" -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
	    -r requirements.lock $(value ARGS)

sbom: ## write what the image's lock holds to dist/sbom.json (CycloneDX)
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

# The shell script behind `make env`. .venv is ready when .venv/requirements.lock, copied there after
# the install, equals requirements.lock. An environment without that copy is completed in place if it
# has pip and a fitting Python; one that an install was broken off in, or of another lock, is made anew.
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

# An environment made anew keeps the interpreter of the last one, unless PYTHON names another.
asked=${PYTHON:-python3 python3.13 python3.12 python3.11}
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- .venv/bin/python $asked; fi
python=
bare=
found=
for name; do
    # The interpreter itself, not one in an activated environment, which could be .venv.
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
    stop "found $bare, which has neither ensurepip nor pip, and making .venv takes one of them;" \
        "on Debian or Ubuntu: sudo apt-get install python$version-venv"
fi
[ -n "$python" ] ||
    stop "the locked environment takes CPython 3.11, 3.12 or 3.13 with glibc 2.28 or newer, found" \
        "${found:-none (looked for $asked)}; install one (sudo apt-get install python3.11-venv, or: uv" \
        "python install 3.13), or name one: make env PYTHON=/path/to/python3.13"

# One install at a time: two commands started together, or the pip that a killed one left running.
if command -v flock >/dev/null; then
    exec 9<requirements.lock
    flock --nonblock 9 || { echo "Waiting for another install into .venv to end"; flock 9; }
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
# pip unpacks some 4 GB beside what it installs: more than a /tmp in memory may hold.
mkdir -p .venv/tmp
TMPDIR=$PWD/.venv/tmp "$@" install --quiet --disable-pip-version-check --no-input --only-binary :all: \
    --require-hashes -r requirements.lock ||
    stop "pip could not install requirements.lock, as it says above; make env starts over"
cp requirements.lock .venv/requirements.lock
rm -rf .venv/tmp .venv/.incomplete
endef

env: export MAKE_ENVIRONMENT := $(value MAKE_ENVIRONMENT)
env: ## make the environment in .venv, if it is not there (PYTHON names the interpreter)
	@sh -c "$$MAKE_ENVIRONMENT"
