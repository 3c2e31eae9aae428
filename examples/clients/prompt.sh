#!/bin/sh
# Asks a deployment over HTTP by curl: ZOPILOT_KEY=… prompt.sh http://localhost:3000 examples/request.json
# Ends with 0 and the answer on standard output, or with curl's status and the typed error there; with 75 where a pod has
# made a job of it. RunPod's own key, which a load balancer asks for as well, goes in RUNPOD_API_KEY.
set -eu
url=$1
request=$2
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
ended=0
# The keys go by a file, not by the command line, where every user of this machine could read them.
status=$(printf 'header = "X-API-Key: %s"\nheader = "Authorization: Bearer %s"\n' "${ZOPILOT_KEY:-none}" \
    "${RUNPOD_API_KEY:-none}" |
    curl -sS --fail-with-body --max-time 300 --retry 5 --retry-max-time 300 --config - --output "$answer" \
        --write-out '%{http_code}' -H 'Content-Type: application/json' --data-binary @"$request" "$url/prompt") || ended=$?
cat "$answer"
if [ "$status" = 202 ]; then
    echo "it takes longer than the proxy waits, and goes on as a job: jobs.py fetches such answers" >&2
    exit 75
fi
exit "$ended"
