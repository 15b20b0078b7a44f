#!/usr/bin/env bash
# Builds or fetches every real server that the tests need, once. Before any of it, says all that
# this machine lacks. A server that a variable names runs already, and is not built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

each() {  # VERB: of every script whose server is not named
  local failed=0
  [ -n "${CBTOP_TEST_INFLUXDB_URL:-}" ] || bash influxdb.sh "$1" 2 >/dev/null || failed=1
  [ -n "${CBTOP_TEST_INFLUXDB1_URL:-}" ] || bash influxdb.sh "$1" 1 >/dev/null || failed=1
  [ -n "${CBTOP_TEST_KAFKA:-}" ] || bash kafka/kafka.sh "$1" >/dev/null || failed=1
  [ -n "${CBTOP_TEST_SCHEMA_REGISTRY:-}" ] || bash registry.sh "$1" >/dev/null || failed=1
  return $failed
}

if ! each check; then
  echo "Or run \`make test-fast\`, which needs no server." >&2
  exit 1
fi
each install
