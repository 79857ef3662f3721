#!/bin/sh
# Make the secrets that docker-compose.yml hands to its services, each in a file of its own; those that are there stay as they are.
#
# The directory is its owner's alone (0700), which is what keeps others on this machine out. The files in it can be read by
# whoever is given them (0444), since Compose mounts them as they are and every service runs as a user id of its own.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
chmod 0700 secrets
cd secrets

# 32 random bytes as 43 characters of A-Z, a-z, 0-9, - and _: nothing that a URL or a shell would read differently.
random() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'
}

# keep NAME: store standard input as NAME unless there is one. It gets its name when it is whole.
keep() {
    if [ ! -e "$1" ]; then
        cat > ".$1.part"
        [ -s ".$1.part" ]
        chmod 0444 ".$1.part"
        mv ".$1.part" "$1"
        echo "made deploy/secrets/$1"
    fi
}

random | keep postgres_password
printf 'postgresql://cafe:%s@postgres:5432/cafe' "$(cat postgres_password)" | keep database_url
random | keep ray_token
random | keep metrics_token
random | keep webhook_secret
random | keep grafana_password
{ printf 'cafe_'; random; } | keep admin_key
