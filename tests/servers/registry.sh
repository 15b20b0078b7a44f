#!/usr/bin/env bash
# A real schema registry for tests: Apicurio Registry, in memory, jars by Maven, loopback only.
#   registry.sh check                  say what this machine lacks for it
#   registry.sh install                fetch it once (142 MB); later calls touch no network
#   registry.sh start DIR [port=N]     start, wait for an answer, print the URL of its
#                                      Confluent-compatible interface
#   registry.sh stop  DIR              SIGTERM, and wait
#
# Needs Java 17 or later, and Maven for the first install. Tests use a registry that runs already
# where CBTOP_TEST_SCHEMA_REGISTRY=URL names one.
#
# DIR/registry.json: pid and url. DIR/registry.log: the log. $OTEL_CBTOP_SERVERS names the cache.
set -euo pipefail

version=2.6.13.Final
cache=${OTEL_CBTOP_SERVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/otel-cbtop-servers}
home=$cache/apicurio-registry-$version
jar=$home/apicurio-registry-app-$version-runner.jar

die() { echo "registry.sh: $*" >&2; exit 1; }

check() {  # say at once what is missing, all of it, how to get it, and how to do without
  local missing=()
  command -v java >/dev/null || missing+=("Java 17 or later (apt install openjdk-17-jre-headless)")
  [ -e "$jar" ] || command -v mvn >/dev/null || missing+=("Maven (apt install maven)")
  [ ${#missing[@]} -eq 0 ] && return
  printf 'registry.sh: Apicurio Registry %s needs:\n' "$version" >&2
  printf '  - %s\n' "${missing[@]}" >&2
  echo "With a registry that runs already, set CBTOP_TEST_SCHEMA_REGISTRY=URL instead." >&2
  exit 1
}

install() {
  check
  [ -e "$jar" ] && return
  mkdir -p "$cache"
  (
    flock 9
    [ -e "$jar" ] && exit  # another process was first
    echo "registry.sh: fetching Apicurio Registry $version with Maven into $cache (once, 142 MB)" >&2
    rm -rf "$home.new"
    mkdir -p "$home.new"
    mvn -B -q org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy \
      -Dartifact="io.apicurio:apicurio-registry-app:$version:tar.gz:all" \
      -DoutputDirectory="$home.new" >&2
    tar xzf "$home.new"/*.tar.gz -C "$home.new"
    rm "$home.new"/*.tar.gz
    mv "$home.new" "$home"
  ) 9>"$cache/registry.lock"
}

# Below the kernel's ephemeral range, so that no client gets the server's port for itself.
free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)); do
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
  done
}

answers() (  # PORT: does it answer a request with 200?
  exec 3<>"/dev/tcp/127.0.0.1/$1"
  printf 'GET /apis/ccompat/v7/subjects HTTP/1.0\r\n\r\n' >&3
  timeout 5 head -n 1 <&3 | grep -q ' 200 '
) 2>/dev/null

running() {  # DIR: print the pid if that very registry lives
  local pid
  pid=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$1/registry.json" 2>/dev/null) || return
  grep -qsaF "apicurio-registry-app" "/proc/$pid/cmdline" && echo "$pid"
}

start() {  # DIR [port=N]
  local dir=$1 port url pid
  port=${2:-port=$(free_port)} port=${port#port=}
  url=http://127.0.0.1:$port/apis/ccompat/v7
  mkdir -p "$dir"
  cd "$home"
  setsid java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dquarkus.http.host=127.0.0.1 \
    -Dquarkus.http.port="$port" -jar "$jar" </dev/null >"$dir/registry.log" 2>&1 &
  pid=$! SECONDS=0
  printf '{"pid": %d, "url": "%s"}\n' $pid "$url" >"$dir/registry.json"
  until answers "$port"; do
    [ $SECONDS -lt 90 ] && kill -0 $pid 2>/dev/null && sleep 0.1 && continue
    tail -n 20 "$dir/registry.log" >&2
    stop "$dir"
    die "the registry did not start; log: $dir/registry.log"
  done
  echo "$url"
}

stop() {  # DIR
  local pid
  pid=$(running "$1") || return 0
  kill "$pid" 2>/dev/null || true
  for _ in {1..100}; do running "$1" >/dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

[ $# -ge 1 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
[ "$1" = install ] || [ "$1" = check ] || [ $# -ge 2 ] || die "$1 needs a folder"
dir=$(realpath -m "${2:-$cache}")
case $1 in
  check) check ;;
  install) install; echo "$home" ;;
  start) install; start "$dir" "${@:3}" ;;
  stop) stop "$dir" ;;
  *) die "no such verb: $1" ;;
esac
