#!/usr/bin/env bash
# Two tasks of one's own, from their folders to released adapters: locally, by `ray job submit` on a private head, and on
# two nights with two configurations over one store. Writes below a work folder and prints what it shows; it ends with a
# code that is not 0 where something is not as it should be.
#
#   infra/dev/own_tasks.sh [WORK [local|submit|nights ...]]      # /tmp/oral-own-tasks, all three
#
# PYTHON (default: python), RAY_PORT and DASHBOARD_PORT (16399, 18299) may be set.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
WORK=$(realpath -m "${1:-/tmp/oral-own-tasks}")
shift || true
PARTS=${*:-local submit nights}
PYTHON=${PYTHON:-python}
BIN=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')")
export PYTHONPATH=$ROOT RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$("$PYTHON" -c 'import secrets; print(secrets.token_hex(32))')}

SHELL_FOLDER=$WORK/shell # where the commands are typed
RELATIVE="Nature or Culture" ABSOLUTE=$WORK/data/concrete_abstract
mkdir -p "$SHELL_FOLDER" "$WORK/data"
cd "$SHELL_FOLDER"
"$PYTHON" "$ROOT/infra/dev/own_tasks.py" "$RELATIVE" nature=animal,plant,body culture=artifact,communication,act
"$PYTHON" "$ROOT/infra/dev/own_tasks.py" "$ABSOLUTE" concrete=food,object,substance abstract=cognition,feeling,attribute

# The quickstart, shortened: fewer steps, the arms that the release is chosen from.
SHORT=(
  bases.versions.{1,2,3}.origin.steps=4 corpus.steps=24 corpus.keep_last=3 training.steps=60
  'training.engine={kind = "torch"}' training.num_workers=1 training.functional.steps=8 training.checkpoint_every=40
  'evaluation.arms=["base", "majority", "joint", "generated", "wrong_prompt"]' evaluation.max_test=80
  evaluation.max_validation=80 evaluation.num_bootstrap=100
)
CONFIG=$ROOT/infra/configs/quickstart.toml
BOTH="tasks.ids=[\"$RELATIVE\", \"$ABSOLUTE\"]"
FIRST=folder/nature-or-culture SECOND=folder/concrete-abstract

say() { printf '\n== %s\n' "$*"; }
demand() { grep -q -- "$1" "$2" || { echo "not in $2: $1" >&2; exit 1; }; }

# Each task by the same id everywhere: releases, report, adapter, score.
check_store() { # STORE PRINTED OUT
  for task in "$FIRST" "$SECOND"; do
    demand "minilm-l6-t3 / $task" "$2"
    adapter=$(ls -d "$1/published/minilm-l6-t3/${task//\//-}"-* | head -1)
    head -12 "$adapter/README.md"
    demand "$task" "$3/report.md"
    folder=$RELATIVE
    [ "$task" = "$FIRST" ] || folder=$ABSOLUTE
    "$BIN/oral-ray" score "$adapter" --base "$1/bases/minilm-l6-t3" --task "$folder" --limit 80 | tee "$WORK/score.json"
    demand "\"$task\"" "$WORK/score.json"
  done
  "$BIN/oral-ray" list --store "$1"
}

local_run() {
  say "locally, typed in $SHELL_FOLDER: $BOTH"
  "$PYTHON" "$ROOT/jobs/quickstart.py" --config "$CONFIG" --store "$WORK/store" "out=$WORK/out" "$BOTH" "${SHORT[@]}" |
    tee "$WORK/local.txt"
  check_store "$WORK/store" "$WORK/local.txt" "$WORK/out"
}

submitted_run() {
  say "by ray job submit --working-dir $SHELL_FOLDER"
  "$BIN/ray" start --head --port "${RAY_PORT:-16399}" --temp-dir "$WORK/ray" --dashboard-port "${DASHBOARD_PORT:-18299}" \
    --dashboard-agent-listen-port 18365 --ray-client-server-port 18101 --min-worker-port 21000 --max-worker-port 21200 \
    --num-cpus 2 --disable-usage-stats --block > "$WORK/head.txt" 2>&1 &
  head=$!
  trap 'kill $head; wait $head || true' EXIT
  address=http://127.0.0.1:${DASHBOARD_PORT:-18299}
  until "$BIN/ray" job list --address "$address" > "$WORK/list.txt" 2>&1; do
    kill -0 $head || { cat "$WORK/head.txt" >&2; exit 1; }
    sleep 2
  done
  "$BIN/ray" job submit --address "$address" --working-dir "$SHELL_FOLDER" \
    --runtime-env-json "{\"env_vars\": {\"PYTHONPATH\": \"$ROOT\"}}" -- \
    "$PYTHON" "$ROOT/jobs/quickstart.py" --config "$CONFIG" --store "$WORK/store-submitted" "out=$WORK/out-submitted" \
    "$BOTH" "${SHORT[@]}" | tee "$WORK/submitted.txt"
  check_store "$WORK/store-submitted" "$WORK/submitted.txt" "$WORK/out-submitted"
  kill $head
  wait $head || true
  trap - EXIT
}

# Configuration `mine` has one task, `yours` the other one; what one released the other must leave alone.
two_nights() {
  for night in 1 2; do
    for name in mine yours; do
      task=$([ $name = mine ] && echo "$RELATIVE" || echo "$ABSOLUTE")
      say "night $night, configuration $name: $task"
      "$PYTHON" "$ROOT/jobs/regenerate.py" --config "$CONFIG" --store "$WORK/store" name=$name "tasks.ids=[\"$task\"]" \
        'evaluation.bases=["minilm-l6-t3"]' "${SHORT[@]}" | tee "$WORK/night-$night-$name.txt"
      [ $night = 1 ] || demand "1 (base, task) pairs, 0 due" "$WORK/night-$night-$name.txt"
    done
  done
  "$BIN/oral-ray" list --store "$WORK/store" | tee "$WORK/releases.txt"
  demand "${FIRST//\//-}" "$WORK/releases.txt"
  demand "${SECOND//\//-}" "$WORK/releases.txt"
}

for part in $PARTS; do
  case $part in
    local) local_run ;;
    submit) submitted_run ;;
    nights) two_nights ;;
    *) echo "unknown part $part: local, submit, nights" >&2; exit 2 ;;
  esac
done
say "done: $PARTS"
