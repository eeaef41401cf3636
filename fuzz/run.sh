#!/bin/sh
# Fuzzes with the stable toolchain: the compiler's own coverage instrumentation and the libFuzzer
# that libfuzzer-sys brings. See docs/operations/fuzzing.md.
#
#   fuzz/run.sh TARGET EXECUTIONS     fuzz one target
#   fuzz/run.sh all EXECUTIONS        one after the other
#   fuzz/run.sh shrink TARGET         add what was found to the committed inputs, few and small
#   fuzz/run.sh crash TARGET FILE     make a crashing input smaller
set -eu

here=$(cd "$(dirname "$0")" && pwd)
: "${CARGO_TARGET_DIR:=$here/target}"
export CARGO_TARGET_DIR
host=$(rustc -vV | sed -n 's/^host: //p')
work=$CARGO_TARGET_DIR/fuzzing
parsers="nbd_handshake nbd_transmission nbd_session superblock journal metadata segment
    api_input text_input image nvme_identify nvme_completion"
pools="whole_pool engine_ops"

# Parsers are built with recorded comparisons, which find magic numbers and keywords. For pools,
# whose inputs are lists of steps, these would only cost half of the speed.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
comparisons="-Cllvm-args=-sanitizer-coverage-trace-compares"

is_pool() {
    case " $pools " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

folder() {
    if is_pool "$1"; then echo "$CARGO_TARGET_DIR/fuzz-pools"; else echo "$CARGO_TARGET_DIR/fuzz-parsers"; fi
}

# build FLAGS FOLDER FEATURES TARGETS: --target keeps the instrumentation away from build scripts
# and procedural macros.
build_group() {
    bins=
    for target in $4; do
        bins="$bins --bin $target"
    done
    # shellcheck disable=SC2086
    (cd "$here" && RUSTFLAGS="$1" CARGO_TARGET_DIR="$2" cargo build --quiet --locked --profile fuzz \
        --target "$host" --no-default-features --features "$3" $bins)
}

build() {
    if [ "$1" = all ] || is_pool "$1"; then
        build_group "$coverage" "$(folder whole_pool)" libfuzzer "$pools"
    fi
    if [ "$1" = all ] || ! is_pool "$1"; then
        build_group "$coverage $comparisons" "$(folder text_input)" libfuzzer,product "$parsers"
    fi
}

# Longest input worth trying, in bytes.
longest() {
    case $1 in
    superblock) echo 200 ;;
    journal | metadata) echo 4097 ;;
    segment) echo 2000 ;;
    whole_pool | engine_ops) echo 300 ;;
    *) echo 1024 ;;
    esac
}

libfuzzer() {
    target=$1
    shift
    "$(folder "$target")/$host/fuzz/$target" -timeout=120 -rss_limit_mb=2048 \
        -max_len="$(longest "$target")" -len_control=10 "$@"
}

fuzz() {
    mkdir -p "$work/$1" "$here/corpus/$1" "$here/artifacts/$1"
    FLAGSTONE_FUZZ_SEEDS="$work/$1" "$(folder "$1")/$host/fuzz/$1"
    # The first folder gets what is found; a crash ends the run and is left in artifacts/.
    libfuzzer "$1" -runs="$2" -artifact_prefix="$here/artifacts/$1/" -print_final_stats=1 \
        "$work/$1" "$here/corpus/$1" >"$work/$1.log" 2>&1 || {
        tail -40 "$work/$1.log"
        echo "$1: FAILED; the whole log is $work/$1.log" >&2
        return 1
    }
    grep -E '^#[0-9]+[[:space:]]+DONE' "$work/$1.log" | sed "s/^/$1: /"
}

case ${1:-} in
shrink)
    build "$2"
    mkdir -p "$work/$2.small" "$here/corpus/$2"
    rm -f "$work/$2.small"/*
    libfuzzer "$2" -merge=1 "$work/$2.small" "$here/corpus/$2" "$work/$2" 2>&1 | tail -1
    rm -f "$here/corpus/$2"/*
    cp "$work/$2.small"/* "$here/corpus/$2/"
    du -sb "$here/corpus/$2"
    ;;
crash)
    build "$2"
    libfuzzer "$2" -minimize_crash=1 -runs=20000 -exact_artifact_path="$3.small" "$3"
    ;;
all)
    build all
    for target in $parsers $pools; do
        fuzz "$target" "$2"
    done
    ;;
*)
    [ $# = 2 ] || {
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
    }
    build "$1"
    fuzz "$1" "$2"
    ;;
esac
