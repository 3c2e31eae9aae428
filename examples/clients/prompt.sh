#!/bin/sh
# Asks a deployment over HTTP by curl: ZOPILOT_KEY=… prompt.sh http://localhost:3000 examples/request.json
# Ends with 0 and the answer on standard output, or with curl's status and the typed error there.
set -eu
url=$1
request=$2
# The key goes by a file, not by the command line, where every user of this machine could read it.
printf 'header = "Authorization: Bearer %s"\n' "${ZOPILOT_KEY:-none}" |
    curl -sS --fail-with-body --max-time 300 --retry 5 --retry-max-time 300 --config - \
        -H 'Content-Type: application/json' --data-binary @"$request" "$url/prompt"
