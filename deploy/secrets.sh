#!/bin/sh
# Create the secrets that docker-compose.yml passes to its services, one file each. Existing files are kept.
#
# The directory has mode 0700, so that other users of this machine cannot read the secrets. The files in it are readable by
# everyone (0444), because Compose mounts them with this mode and each service runs as a different user.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
chmod 0700 secrets
cd secrets

# Print 32 random bytes as 43 characters of A-Z, a-z, 0-9, - and _, which need no quoting in URLs or shells.
random() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'
}

# keep NAME: store standard input as NAME unless the file exists. It is renamed into place when it is complete.
keep() {
    if [ ! -e "$1" ]; then
        cat > ".$1.part"
        [ -s ".$1.part" ]
        chmod 0444 ".$1.part"
        mv ".$1.part" "$1"
        echo "created deploy/secrets/$1"
    fi
}

random | keep postgres_password
printf 'postgresql://cafe:%s@postgres:5432/cafe' "$(cat postgres_password)" | keep database_url
random | keep ray_token
random | keep metrics_token
random | keep webhook_secret
random | keep grafana_password
{ printf 'cafe_'; random; } | keep admin_key
