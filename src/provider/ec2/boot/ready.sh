# Says how far the boot is: what user-data.sh has written down so far.
run=${NIX_BROKER_ROOT-}/run/nix-broker
head -n 40 "$run/phases" 2>/dev/null | cut -c 1-500 | sed 's/^/boot-phase = /'
for state in ready failed off; do
  [ ! -e "$run/$state" ] || echo "boot-$state = $(head -n 1 "$run/$state" | cut -c 1-1000)"
done
echo "boot-uptime = $(cut -d ' ' -f 1 "${NIX_BROKER_ROOT-}/proc/uptime")"
