#!/usr/bin/env bash
# Builds docker/Dockerfile and tests the image: as a user without an entry in /etc/passwd, with a read-only root,
# without capabilities and without a network. Needs no GPU, and docker or podman, also as root.
#
#   docker/verify.sh                            all stages, in this order:
#       build         the image; the sizes of its layers and parts; it has no files that it must not have
#       doctor        python -m dali_msda.doctor
#       train         the run without --data, --mix hmix
#       stop          SIGTERM in the middle of an epoch; the run resumes from the checkpoint
#       reproducible  a second build without cache has the same files; the same seed in two containers gives
#                     the same losses
#       tests         the test suite, in the target `test`
#   docker/verify.sh build train                some of them; without build, they use the image of an earlier build
#
# ENGINE        the command, "docker" or "podman --some-option"; by default the first one that works
# BASE          the base image. By default the Dockerfile's; if that has not been pulled and debootstrap is
#               installed, a small Debian with Python, made from the machine's apt sources
# IMAGE         the name of the image (dali-msda)
# TRAIN_ARGS    more options for the stage train, such as --epochs 1
# PATIENCE      seconds without any progress after which the stage stop gives up (600)
# TEST_ARGS     options of pytest for the stage tests
# RUN_OPTIONS   more options for every run, such as "--gpus all"
# PIP_CONF, CA  a pip.conf and a certificate bundle (/run/secrets/ca.crt in the build); by default both come from
#               this machine's pip
#
# The log is build/verify.log; the runs write to build/verify/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages=(build doctor train stop reproducible tests)
chosen=("$@")
if [[ $# == 0 ]]; then chosen=("${stages[@]}"); fi
for name in "${chosen[@]}"; do
    if [[ " ${stages[*]} " != *" $name "* ]]; then
        echo "verify.sh: STAGE must be one of ${stages[*]}; got $name" >&2
        exit 2
    fi
done

image=${IMAGE:-dali-msda}
work=$PWD/build/verify
container=verify-$$
patience=${PATIENCE:-600}
mkdir -p "$work"
exec </dev/null > >(tee -a build/verify.log) 2>&1
read -ra run_options <<<"${RUN_OPTIONS:-}"
read -ra train_args <<<"${TRAIN_ARGS:-}"
read -ra test_args <<<"${TEST_ARGS:-}"

say() { echo "verify: $*"; }
fail() { echo "verify: FAILED: $*"; exit 1; }

# -- The engine and the base ----------------------------------------------------------------------------

default_base=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile | head -n 1)
made_base=localhost/dali-msda-base:bookworm

make_base() {
    local suite=bookworm mirror root
    # shellcheck disable=SC2016 # $(REPO_URI) is apt's
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" | head -n 1)
    root=$(mktemp -d "$work/base.XXXX")
    say "base: debootstrap of Debian $suite with python3"
    debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$root" "$mirror" >"$work/debootstrap.log"
    # Like Debian's images: no package lists, no cache, no documents, and no mention of the mirror.
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/usr/share/{doc,man,info,locale}/* \
        "$root"/var/log/* "$root"/etc/apt/sources.list "$root"/tmp/* "$root"/debootstrap
    tar -C "$root" -c . | "${engine[@]}" import - "$made_base" >/dev/null
    rm -rf "$root"
}

find_engine() {
    if [[ -n ${ENGINE:-} ]]; then
        read -ra engine <<<"$ENGINE"
        runner=("${engine[@]}")
    elif docker info >/dev/null 2>&1; then
        engine=(docker)
        runner=(docker)
    elif podman info >/dev/null 2>&1; then
        engine=(podman)
        runner=()
    else
        fail "neither docker nor podman works (on Debian: apt-get install podman runc)"
    fi
}

# podman's default runtime can be tested only with an image. It is crun, which rejects cgroups of versions 1 and 2
# side by side. Also, podman raises limits, which root may not do without CAP_SYS_RESOURCE.
limits=()
find_runner() {
    local output
    if [[ ${#runner[@]} -gt 0 ]]; then return; fi
    runner=(podman)
    if "${runner[@]}" run --rm --network none "$image" -c pass 2>/dev/null; then return; fi
    runner=(podman --runtime runc --cgroup-manager cgroupfs)
    limits=(--ulimit nofile=8192:8192 --ulimit nproc=8192:8192)
    output=$("${runner[@]}" run --rm --network none "${limits[@]}" "$image" -c pass 2>&1) ||
        fail "podman cannot run containers: $output"
}

image_id() { "${engine[@]}" image inspect --format '{{.Id}}' "$1"; }

have() { "${engine[@]}" image inspect "$1" >/dev/null 2>&1; }

find_base() {
    base=${BASE:-}
    if [[ -n $base ]]; then return; fi
    base=$default_base
    if ! have "$base" && command -v debootstrap >/dev/null && [[ $(id -u) == 0 ]]; then
        base=$made_base
        have "$base" || make_base
    fi
}

# -- Building and running ---------------------------------------------------------------------------------

build() { # NAME [OPTION...]
    local name=$1 options=() conf=${PIP_CONF:-} ca=${CA:-} key value status=0
    shift
    if [[ -z $ca ]]; then
        ca=${PIP_CERT:-$(python3 -m pip config get global.cert 2>/dev/null || true)}
    fi
    if [[ -z $conf ]]; then
        conf=$work/pip.conf
        (
            umask 077
            echo "[global]" >"$conf"
            for key in index-url proxy timeout trusted-host; do
                value=$(python3 -m pip config get "global.$key" 2>/dev/null) && echo "$key = $value"
            done >>"$conf" || true
            [[ -z $ca ]] || echo "cert = /run/secrets/ca.crt" >>"$conf"
        )
    fi
    options+=(--secret "id=pip.conf,src=$conf")
    [[ -z $ca ]] || options+=(--secret "id=ca.crt,src=$ca")
    # Without chroot isolation podman needs a container for each build step, which it may not be allowed to make.
    [[ ${engine[0]} != podman ]] || options+=(--layers --isolation chroot)
    IMAGE=$name ENGINE="${engine[*]}" docker/build.sh --network host --build-arg BASE="$base" "${options[@]}" "$@" ||
        status=$?
    [[ -n ${PIP_CONF:-} ]] || rm -f "$work/pip.conf"
    return "$status"
}

# The arguments: options of the run, --, the image, its arguments.
run() {
    local options=()
    find_runner
    while [[ $1 != -- ]]; do options+=("$1"); shift; done
    shift
    "${runner[@]}" run --user 12345:12345 --read-only --tmpfs "/tmp:rw,${tmp_exec:-noexec},nosuid,nodev,size=8g,mode=1777" \
        --cap-drop ALL --security-opt no-new-privileges --network none "${limits[@]}" \
        "${run_options[@]}" "${options[@]}" "$@"
}

# Makes a folder that is writable for the user of the container.
folder() { # NAME
    rm -rf "${work:?}/$1"
    mkdir -p "$work/$1"
    chmod 1777 "$work/$1"
}

# Lists name and version of all packages, and hashes of their files and the project's: one line each.
# Compiled files contain the time of their source, so they differ between builds.
list_files='
import hashlib, importlib.metadata, pathlib, sys
for name, version in sorted((d.metadata["Name"].lower(), d.version) for d in importlib.metadata.distributions()):
    print(f"{name}=={version}")
if "--files" in sys.argv:
    for root in ("/opt/venv", "/app"):
        for path in sorted(pathlib.Path(root).rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix != ".pyc":
                with path.open("rb") as file:
                    print(hashlib.file_digest(file, "sha256").hexdigest(), path)
'

# -- Stages -----------------------------------------------------------------------------------------------

stage_build() {
    local commit
    commit=$(git rev-parse HEAD)
    find_base
    say "base image: $base"
    build "$image" >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; fail "the build; full output: $work/build.log"; }
    say "layers:"
    "${engine[@]}" history --no-trunc --format '{{.Size}}  {{.CreatedBy}}' "$image" | cut -c 1-150 | grep -v '^0  *B'
    say "bytes in total: $("${engine[@]}" image inspect --format '{{.Size}}' "$image")"
    say "MB by part:"
    run --rm --entrypoint sh -- "$image" -c '
        cd /opt/venv/lib/python3*/site-packages
        du -sm nvidia/* torch torchvision triton llvmlite /app | sort -rn | head -n 22'
    say "labels and settings:"
    "${engine[@]}" image inspect --format '{{json .Config}}' "$image"
    [[ $("${engine[@]}" image inspect --format '{{.Config.User}} {{json .Config.Entrypoint}} {{.Config.StopSignal}}' "$image") \
        == '10001:10001 ["/opt/venv/bin/python"] SIGTERM' ]] || fail "user, entry point or stop signal"
    "${engine[@]}" image inspect --format '{{json .Config.Env}}' "$image" |
        grep -q "\"DALI_MSDA_COMMIT=$commit" || fail "the image is not of this commit"
    say "no compiler, no pip, no cache, no secrets; the root is read-only, /tmp and /outputs are writable:"
    # shellcheck disable=SC2016 # for the shell in the container
    run --rm --entrypoint sh -- "$image" -euc '
        id
        for tool in gcc cc g++ clang ld make git; do
            if command -v $tool; then echo "FAILED: found $tool"; exit 1; fi
        done
        for path in /root/.cache /run/secrets/pip.conf /run/secrets/ca.crt /opt/pip /opt/venv/lib/python3*/site-packages/pip /app/tests; do
            if [ -e "$path" ]; then echo "FAILED: found $path"; exit 1; fi
        done
        for folder in / /app /opt/venv /usr /var /home; do
            if touch "$folder/x" 2>/dev/null; then echo "FAILED: $folder is writable"; exit 1; fi
        done
        touch /tmp/x /outputs/x
        if find / -xdev -type f -perm -0002 ! -path "/proc/*" 2>/dev/null | grep .; then echo "FAILED: these are writable for everyone"; exit 1; fi'
    say "without arguments it shows the help:"
    run --rm -- "$image" >"$work/help.txt"
    head -n 4 "$work/help.txt"
    grep -q -- --mix "$work/help.txt" || fail "no help"
    run --rm -- "$image" -m pipelines.check --help >/dev/null
}

stage_doctor() {
    run --rm -- "$image" -m dali_msda.doctor
}

stage_train() {
    folder train
    # The command of the README, with a folder for the results.
    run --rm -v "$work/train:/outputs" -- "$image" train_imagenet.py --mix hmix "${train_args[@]}" 2>"$work/train.stderr" ||
        { tail -n 20 "$work/train.stderr"; fail "the training"; }
    local output
    output=$(echo "$work"/train/*)
    grep -E '"(image|commit)"' "$output/config.json"
    [[ -s $output/best.pt ]] || fail "no best.pt"
}

# A checksum of what a working container changes: the files in a folder and its output.
traces() { # FOLDER
    { find "$1" -printf '%p %s\n' 2>/dev/null || true; "${runner[@]}" logs "$container" 2>&1 || true; } | cksum
}

# Waits for a text in a file of a folder, however slow the machine, while the container runs and something changes.
wait_for() { # TEXT FOLDER FILE
    local before="" now since=$SECONDS why=""
    until grep -qs "$1" "$2/$3"; do
        now=$(traces "$2")
        if [[ $now != "$before" ]]; then before=$now since=$SECONDS; fi
        if [[ -n $why ]]; then
            "${runner[@]}" logs "$container" 2>&1 | tail -n 20
            fail "no $1 in $3: $why"
        elif [[ -z $("${runner[@]}" ps -q --filter "name=$container") ]]; then
            why="the container has left" # after one more look at the file
        elif ((SECONDS - since >= patience)); then
            why="nothing has changed for $patience s"
        else
            sleep 1
        fi
    done
}

stage_stop() {
    folder stop
    local status last
    local command=(train_imagenet.py --mix hmix --demo-data /outputs/demo --log-every 1 --max-steps 200
        --resume auto --output)
    run -d --name "$container" -v "$work/stop:/outputs" -- "$image" "${command[@]}" /outputs/run >/dev/null
    wait_for '"step": 70,' "$work/stop" run/metrics.jsonl
    # shellcheck disable=SC2016 # for the Python in the container
    say "process 1: $("${runner[@]}" exec "$container" python -c 'print(open("/proc/1/cmdline").read().replace("\0", " "))')"
    "${runner[@]}" stop --time "$patience" "$container" >/dev/null
    status=$("${runner[@]}" inspect --format '{{.State.ExitCode}}' "$container")
    "${runner[@]}" logs "$container" 2>&1 | tr '\r' '\n' | grep -v '^ *$' | tail -n 3
    "${runner[@]}" rm -f "$container" >/dev/null
    [[ $status == 143 ]] || fail "exit status $status, not 143 (128 + SIGTERM)"
    last=$(last_step)
    say "stopped at step $last; $(ls "$work/stop/run/checkpoints")"
    [[ $last -lt 200 ]] || fail "the run finished before it was stopped"
    say "the same command resumes:"
    run --rm -v "$work/stop:/outputs" -- "$image" "${command[@]}" /outputs/run 2>/dev/null
    [[ $(last_step) == 200 ]] || fail "it ended at step $(last_step), not 200"
    say "with the losses of an uninterrupted run:"
    run --rm -v "$work/stop:/outputs" -- "$image" "${command[@]}" /outputs/whole >/dev/null 2>&1
    same_losses "$work/stop" run whole
}

last_step() {
    sed -n 's/.*"step": \([0-9]*\).*/\1/p' "$work/stop/run/metrics.jsonl" | tail -n 1
}

# Compares two metrics.jsonl, except for times.
same_losses() { # FOLDER RUN RUN
    run --rm -v "$1:/outputs:ro" -- "$image" -c '
import json, sys
first, second = ([{key: value for key, value in json.loads(line).items()
                   if key not in ("images_per_s", "data_wait", "seconds")}
                  for line in open(f"/outputs/{name}/metrics.jsonl")] for name in sys.argv[1:])
if first != second:
    sys.exit(f"FAILED: {len(first)} and {len(second)} lines; first differing: "
             f"{next((pair for pair in zip(first, second) if pair[0] != pair[1]), None)}")
print(f"verify: the losses of {len(first)} lines are the same, bit for bit; the last line: {first[-1]}")' "$2" "$3"
}

stage_reproducible() {
    find_base
    say "a second build, without cache"
    local options=(--no-cache) name
    # Its stages, 9 GB each, are not needed afterwards; Docker's builder removes them when it needs space.
    [[ ${engine[0]} != podman ]] || options+=(--layers=false --force-rm)
    build "$image-again" "${options[@]}" >"$work/again.log" 2>&1 || { tail -n 40 "$work/again.log"; fail "the second build"; }
    run --rm -- "$image" -c "$list_files" --files >"$work/files-1.txt"
    run --rm -- "$image-again" -c "$list_files" --files >"$work/files-2.txt"
    [[ $(image_id "$image") != "$(image_id "$image-again")" ]] || fail "both names are the same image"
    "${engine[@]}" rmi -f "$image-again" >/dev/null
    diff "$work/files-1.txt" "$work/files-2.txt" || fail "the two builds differ"
    say "$(grep -c == "$work/files-1.txt") packages with the same versions, $(grep -vc == "$work/files-1.txt") files with the same content"
    folder same
    for name in first second; do
        say "seed 3, $name container"
        run --rm -v "$work/same:/outputs" -- "$image" train_imagenet.py --mix hmix \
            --output "/outputs/$name" --seed 3 --log-every 1 --max-steps 80 >/dev/null 2>&1
    done
    same_losses "$work/same" first second
}

stage_tests() {
    find_base
    build "$image-test" --target test >"$work/build-test.log" 2>&1 ||
        { tail -n 40 "$work/build-test.log"; fail "the build of the test image"; }
    # Some tests write small programs to /tmp.
    tmp_exec="exec" run --rm -e OMP_NUM_THREADS="${OMP_NUM_THREADS:-}" -- "$image-test" -m pytest -p no:cacheprovider "${test_args[@]}"
}

find_engine
finish() {
    local status=$?
    if [[ ${#runner[@]} -gt 0 ]]; then "${runner[@]}" rm -f "$container" >/dev/null 2>&1 || true; fi
    rm -f "$work/pip.conf"
    exit "$status"
}
trap finish EXIT

say "$(date -u +%FT%TZ), ${engine[*]} ($("${engine[@]}" --version)), $(env -u OMP_NUM_THREADS nproc) cores, $(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1), commit $(git describe --always --dirty)"
for name in "${chosen[@]}"; do
    start=$SECONDS
    echo "== $name"
    "stage_$name"
    echo "== $name: passed after $((SECONDS - start)) s"
done
