#!/bin/bash
# make test: every tier, in one run of pytest whose closing line is the last line.
#
# A cluster that is up is used and stays; one that was brought up for the tests goes again unless
# KEEP=1. In CI a cluster that is up is somebody's leftover, so it makes way for a fresh one.
# ARGS goes to pytest; TESTS chooses other tests than all.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$PWD/build/test
mkdir -p "$out"
STEPS=$out/steps.txt
export STEPS
: >"$STEPS"
tests=${TESTS:-tests/unit tests/data tests/api tests/e2e}
step() { deploy/build/step "$@"; }
own_cluster=

finish() {
    local status=$?
    trap - EXIT
    if [ -n "$own_cluster" ] && [ -z "${KEEP:-}" ]; then
        step "Kubernetes down" deploy/build/cluster down || status=1
    fi
    printf '\n'
    cat "$STEPS"
    printf '\n'
    # The verdict comes last, where people and CI look for it.
    if [ -f "$out/pytest.log" ]; then grep -E '^=+ .* in [0-9.:s() ]+ =+$' "$out/pytest.log" | tail -n 1; fi
    exit "$status"
}
trap finish EXIT
# So that an interrupted run takes its cluster down, too.
trap 'exit 130' INT TERM

rm -f "$out/pytest.log"
step "Tools" deploy/build/tools
step "Python environment" deploy/build/bootstrap
step "Debian packages for the data tests" deploy/build/host-packages
if [ "${CI:-}" = true ] && deploy/build/cluster is-up; then
    step "Kubernetes down, to start afresh" deploy/build/cluster down
fi
deploy/build/cluster is-up || own_cluster=yes
step "Kubernetes, three workers" deploy/build/cluster up
step "Images" deploy/build/images
step "Images into the nodes" deploy/build/cluster load
KUBECONFIG=$(deploy/build/cluster kubeconfig)
export KUBECONFIG

# shellcheck disable=SC2086  # both are lists of words
step "Tests" .venv/bin/pytest $tests --durations=15 --junitxml="$out/junit.xml" ${ARGS:-} 2>&1 | tee "$out/pytest.log"
