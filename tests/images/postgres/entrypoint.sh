#!/bin/sh
# Makes the databases at the first start only, as the published image does, and then runs the server.
set -eu
data=/var/lib/postgresql/data/cluster
if [ ! -e "$data/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    initdb --username="$POSTGRES_USER" --auth=scram-sha-256 --pwfile=/tmp/password "$data"
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
    pg_ctl start --wait --pgdata="$data" --options="-h '' -k /tmp"
    for script in /docker-entrypoint-initdb.d/*.sql; do
        PGPASSWORD="$POSTGRES_PASSWORD" psql --host=/tmp --username="$POSTGRES_USER" --dbname=postgres --file="$script"
    done
    pg_ctl stop --wait --pgdata="$data"
    rm /tmp/password
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql,/tmp
