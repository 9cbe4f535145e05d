#!/usr/bin/env bash
# Builds the image from this checkout, with labels. The arguments are options of `docker build`.
#
#   docker/build.sh                                         as dali-msda
#   IMAGE=my-name ENGINE=podman docker/build.sh --build-arg BASE=python:3.11-slim-bookworm@sha256:...
#   SOURCE=https://host/repository docker/build.sh          the label org.opencontainers.image.source
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
commit=$(git rev-parse HEAD 2>/dev/null || true)
if [[ -n $commit && -n $(git status --porcelain) ]]; then commit+=-dirty; fi
# 12 digits of the commit, and -dirty if present.
id=$version${commit:+-${commit:0:12}${commit:40}}

read -ra engine <<<"${ENGINE:-docker}"
DOCKER_BUILDKIT=1 exec "${engine[@]}" build -f docker/Dockerfile -t "${IMAGE:-dali-msda}" \
    --build-arg VERSION="$version" --build-arg COMMIT="$commit" --build-arg IMAGE_ID="$id" \
    --build-arg SOURCE="${SOURCE:-}" "$@" .
