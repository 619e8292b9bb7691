#!/bin/sh
# The answer to GET /: who this is, how long it has been up, how far the counter is.
read -r uptime _ < /proc/uptime
read -r counter < /run/counter
read -r boot < /proc/sys/kernel/random/boot_id
printf 'Content-Type: text/plain\r\n\r\nhost=%s\nuptime=%s\ncounter=%s\nboot=%s\n' \
  "$(hostname)" "$uptime" "$counter" "$boot"
