#!/usr/bin/env bash
# Exit code: 0 passed, 5 failed, 7 must not be used; 6, cannot tell, passes here with a warning.
set -uo pipefail
miyabi-llm bench ab "base=$BASE_URL" "new=$NEW_URL" \
  --workload "${WORKLOAD:-chat}" --budget "${BUDGET:-600}" \
  --fail-on "${TTFT:-ttft_p50 > +5%}" \
  --fail-on "${TPOT:-tpot_p50 > +5%}" \
  --fail-on "${ERRORS:-error_rate > +1%}" \
  --junit gate.xml --markdown gate.md --history history.jsonl --label "${GITHUB_SHA:-local}"
code=$?
if [ -f gate.md ]; then cat gate.md >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"; fi
case $code in
  6) echo "::warning::the benchmark cannot tell; not counted as a failure"; [ -n "${STRICT:-}" ] && exit 6; exit 0 ;;
  *) exit $code ;;
esac
