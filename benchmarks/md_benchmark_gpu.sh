#!/usr/bin/env bash
# Teacher against student on a GPU: doctor, benchmark twice, check, profile. About four minutes on an H100.
#
#   OUT=results benchmarks/md_benchmark_gpu.sh
#
# From the repository's root. Needs sevenn, and orb-models for Orb with random weights (left out
# where it is missing). After LIMIT seconds no further section begins. DEVICE=cpu, SIZES="64 216" and
# MOST (seconds a slow case may take) fit it to other machines; slow models then stop short of 1,000
# steps, and the results say so.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
: "${OUT:=benchmark-results}" "${PYTHON:=python3}" "${DEVICE:=cuda}" "${SIZES:=64 1000 8000}"
: "${MOST:=1.5}" "${TEACHER:=7net-0}" "${LIMIT:=240}"
mkdir -p "$OUT"
run() { "$PYTHON" -m mlff_distiller "$@"; }
# Names a section, and ends the script where there is no time for it.
say() {
    [ "$SECONDS" -lt "$LIMIT" ] || { printf '\n== %s: left out after %d s\n' "$1" "$SECONDS"; exit 0; }
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

STUDENTS=(--student nep=benchmarks/silicon/nep --student painn=benchmarks/silicon/painn)
TEACHERS=(--teacher "$TEACHER")
"$PYTHON" -c 'import orb_models' 2>/dev/null &&
    TEACHERS+=(--teacher orb-random=ase:benchmarks.orb_random:calculator)
systems() { for n in "$@"; do printf -- '--system silicon:%s ' "$n"; done; }
read -ra ALL <<<"$(systems $SIZES)"
read -ra SMALL <<<"$(systems $(printf '%s\n' $SIZES | head -2))"
COMMON=(--device "$DEVICE" --least-seconds 0.5 --warm-up 20 --quiet)

say doctor
run doctor --disk "$OUT" | tee "$OUT/doctor.txt"

say "constant energy, all sizes"
run benchmark "${STUDENTS[@]}" "${TEACHERS[@]}" "${ALL[@]}" "${COMMON[@]}" \
    --repeats 2 --most-seconds "$MOST" --out "$OUT/nve"

say "the students again: reproducible? does check pass?"
run benchmark "${STUDENTS[@]}" "${SMALL[@]}" "${COMMON[@]}" \
    --repeats 2 --most-seconds "$MOST" --out "$OUT/again"
run benchmark compare "$OUT/nve" "$OUT/again"
run benchmark record "$OUT/nve" --into "$OUT/baselines"
run benchmark check "$OUT/again" --against "$OUT/baselines"
echo "check: exit code $?, 0 expected"

say "a fifth slower: does check fail?"
mkdir -p "$OUT/slow"
"$PYTHON" - "$OUT" <<'SLOW'
import json, sys
path = sys.argv[1]
result = json.load(open(f"{path}/again/benchmark.json"))
for case in result["cases"]:
    case["quiet_ms"] *= 1.2
json.dump(result, open(f"{path}/slow/benchmark.json", "w"))
SLOW
run benchmark check "$OUT/slow" --against "$OUT/baselines" >/dev/null
echo "check: exit code $?, 1 expected"

say "where a step goes"
run profile "${STUDENTS[@]}" --teacher "$TEACHER" "${SMALL[@]}" --device "$DEVICE" \
    --steps 60 --warm-up 10 --traced 5 --out "$OUT/profile"

say "thermostat and barostat"
run benchmark "${STUDENTS[@]}" --teacher "$TEACHER" "${SMALL[@]}" "${COMMON[@]}" \
    --ensemble nvt --ensemble npt --repeats 1 --most-seconds "$MOST" --out "$OUT/coupled"

say "many at once, and many atoms"
run benchmark "${STUDENTS[@]:0:2}" --system silicon:64 --engine run_md "${COMMON[@]}" \
    --replicas 1 --replicas 64 --replicas 1024 --repeats 1 --most-seconds "$MOST" --out "$OUT/batched"
[ "$DEVICE" = cpu ] || run benchmark "${STUDENTS[@]:0:2}" --system silicon:1000000 --engine run_md \
    "${COMMON[@]}" --repeats 1 --most-seconds 5 --out "$OUT/large"

say "painn, its kernels fused"
run benchmark --student painn=benchmarks/silicon/painn "${ALL[@]}" "${COMMON[@]}" --compile \
    --engine run_md --repeats 1 --most-seconds "$MOST" --out "$OUT/compiled"

say done
