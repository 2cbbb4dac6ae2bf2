#!/bin/sh
# Keeps what this machine builds in a binary cache, for the builders that come after it.
#
#   cache.sh            Nix's post-build-hook: puts $OUT_PATHS into the queue; never fails, never waits for the cache
#   cache.sh upload     uploads what is in the queue, one path and what it refers to at a time, for ever
#
# The queue is a directory of garbage collector roots, so that nothing is deleted before it is uploaded. A path that
# cannot be uploaded three times is given up. The cache's URL is in cache-url, its signing key in cache-key.
# NIX_BROKER_ROOT stands before our own paths, for tests.
PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin
run=${NIX_BROKER_ROOT-}/run/nix-broker
queue=${NIX_BROKER_ROOT-}/nix/var/nix/gcroots/nix-broker-cache
mkdir -p "$queue" "$run/cache-failures"
if [ "${1-}" != upload ]; then
  # Nix 2.8 leaves it empty.
  for path in ${OUT_PATHS:-$(nix-store --query --outputs "$DRV_PATH" 2>/dev/null)}; do ln -sfn "$path" "$queue/${path##*/}"; done
  exit 0
fi

url=$(cat "$run/cache-url")
case $url in *\?*) url=$url\& ;; *) url=$url\? ;; esac
# The rarest of the machine's goods is its processors: xz, which is Nix's own choice, takes far more of them.
url="${url}compression=zstd&secret-key=$run/cache-key"
while :; do
  pause=${NIX_BROKER_CACHE_PAUSE:-2}
  for entry in "$queue"/*; do
    [ -L "$entry" ] || continue
    name=${entry##*/}
    if timeout 900 nice -n 19 nix --extra-experimental-features nix-command copy --to "$url" "$(readlink "$entry")" \
      >"$run/cache-errors" 2>&1; then
      rm -f "$entry" "$run/cache-failures/$name"
      continue
    fi
    echo "nix-broker: not in the cache yet: $name: $(tail -c 300 "$run/cache-errors" | tr '\n' ' ')" >&2
    echo >>"$run/cache-failures/$name"
    [ "$(wc -l <"$run/cache-failures/$name")" -lt 3 ] || rm -f "$entry" "$run/cache-failures/$name"
    # Down, most likely, so that all of them would fail.
    pause=${NIX_BROKER_CACHE_PAUSE:-30}
    sleep "$pause"
  done
  sleep "$pause"
done
