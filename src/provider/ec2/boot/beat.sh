# Renews the lease of this builder, and says whether it will last. Arguments: `spot` or `on-demand`, `used` or `unused`.
root=${NIX_BROKER_ROOT-}
run=$root/run/nix-broker
imds=${NIX_BROKER_IMDS:-http://169.254.169.254}
read -r up rest <"$root/proc/uptime"
for file in lease_at used_at; do
  [ "$file" != used_at ] || [ "$2" = used ] || continue
  echo "${up%%.*}" >"$run/$file.$$" && mv -f "$run/$file.$$" "$run/$file" && echo "$file = ${up%%.*}"
done
echo "uptime = $up"
[ ! -e "$run/off" ] || echo "off = $(head -n 1 "$run/off" | cut -c 1-1000)"
[ "$1" = spot ] || exit 0
token=$(curl -s -f -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/latest/api/token")
notice() { # NAME PATH
  echo "$1 = $(curl -s -m 2 -w '\n%{http_code}' -H "X-aws-ec2-metadata-token: $token" "$imds/latest/meta-data/$2" |
    tail -c 1000 | tr '\r\n' '  ')"
}
notice interruption spot/instance-action
notice rebalance events/recommendations/rebalance
exit 0
