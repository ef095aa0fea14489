#!/bin/sh
# Whether a site's NATS is to be left alone, as its liveness probe asks: alive.sh MONITOR STORE
#
# A stream whose disk was full once refuses everything until the server starts again, and only
# /healthz itself says so (decision 58). While the disk is full that would mend nothing, and take
# all else of the site along: its link, its work, its leases. So it starts again when there is room.
monitor=$1 store=$2 room_kib=65536
healthy() { wget -q -T 2 -O /dev/null "$monitor/healthz$1"; }

healthy "" && exit 0
healthy "?js-server-only=true" || exit 1
free_kib=$(df -Pk "$store" | awk 'NR == 2 {print $4}')
[ "${free_kib:-0}" -lt "$room_kib" ]
