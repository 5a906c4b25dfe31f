#!/bin/sh
# Ignores the arguments, which are those of another server.
set -eu
export MOTO_ENABLE_RECORDING=True MOTO_RECORDER_FILEPATH=/data/requests
/opt/moto/bin/moto_server --host 0.0.0.0 --port 9000 &
until python3 -c 'from urllib.request import urlopen; urlopen("http://127.0.0.1:9000/moto-api/")'; do sleep 1; done
if [ -s /data/requests ]; then
    python3 -c 'from urllib.request import urlopen; urlopen("http://127.0.0.1:9000/moto-api/recorder/replay-recording", b"")'
fi
wait
