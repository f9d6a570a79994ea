#!/bin/sh
# One evaluation, for cron (eval.crontab), systemd (eval.service) or a person; its settings come from the environment.
#
# Each night has a folder of its own, RUNS/2026-11-29. A night that ran out of time or died is finished first: the next start goes
# on in its folder. RUNS/latest is the last run that was scored. RUNS/accepted is the run that a night is held against; the first
# one that is scored becomes it, and a person moves it on: ln -sfn 2026-11-29 RUNS/accepted
#
# It prints nothing when all is well, when the last start still works (code 75) and when time is up (130). It prints what is wrong,
# and the end of the night's log, in every other case: a worse score (6), a server or a picture folder that is away (5), files
# that cannot be used (3), and so on. cron mails what is printed. The exit code is that of `cos eval`.
set -u

COS=${COS:-cos}
BENCHMARKS=${BENCHMARKS:-pope mme gqa}
DATA=${DATA:?the folder with one folder a benchmark}
MODEL=${MODEL:?the checkpoint, or the name that a server gives it}
RUNS=${RUNS:?the folder of all nights}
# Further options, such as: --max-runtime 5h --fail-under pope.mean_f1=0.85
OPTIONS=${OPTIONS:-}
# The night's name; a second run of one day continues the first.
NIGHT=${NIGHT:-$(date +%Y-%m-%d)}

mkdir -p "$RUNS" || exit 3
begun=$RUNS/.begun

# Runs `cos eval` in the folder of one night and keeps its words, its summary and its code.
evaluate() {
  log=$RUNS/$1.log
  baseline=
  [ -e "$RUNS/accepted" ] && [ "$(readlink "$RUNS/accepted")" != "$1" ] && baseline=yes
  # Lists of words, split on purpose.
  # shellcheck disable=SC2086
  "$COS" eval $BENCHMARKS --data "$DATA" --model "$MODEL" --out "$RUNS/$1" --latest "$RUNS/latest" \
    ${baseline:+--baseline "$RUNS/accepted"} --json $OPTIONS > "$RUNS/.$1.json" 2>> "$log"
  code=$?
  if [ -s "$RUNS/.$1.json" ]; then mv "$RUNS/.$1.json" "$RUNS/$1.json"; else rm -f "$RUNS/.$1.json"; fi
}

night=$NIGHT
[ -s "$begun" ] && night=$(cat "$begun")
[ "$night" = "$NIGHT" ] || echo "$night was not finished and goes on" >> "$RUNS/$night.log"
echo "$night" > "$begun" || exit 3
evaluate "$night"
if [ "$code" = 3 ] && [ "$night" != "$NIGHT" ]; then
  # Most likely the model has changed since: what that night lacks cannot be answered any more.
  echo "$night cannot be finished; $NIGHT begins" >> "$log"
  night=$NIGHT
  echo "$night" > "$begun" || exit 3
  evaluate "$night"
fi

case $code in
  75 | 130) exit "$code" ;;
esac
# A run that was killed goes on with the next start, too.
[ "$code" -gt 128 ] || rm -f "$begun"
if [ "$code" = 0 ] && [ ! -e "$RUNS/accepted" ]; then
  ln -sfn "$night" "$RUNS/accepted"
  echo "$night is the run that later nights are held against" >> "$log"
fi
[ "$code" = 0 ] && exit 0

case $code in
  2) why="a wrong option" ;;
  3) why="something cannot be used: data, model, settings, or the disk" ;;
  4) why="something is missing: a package, a model, a GPU, or the server" ;;
  5) why="too many questions had no answer; the same command asks again what may succeed then" ;;
  6) why="the score is worse than allowed" ;;
  7) why="the score cannot be compared" ;;
  *) why="it did not end by itself" ;;
esac
echo "The evaluation of $night ended with code $code: $why."
echo "$log ends with:"
tail -n 20 "$log"
exit "$code"
