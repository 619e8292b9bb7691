#!/bin/sh
# The answer to GET /cgi-bin/stream: a numbered line every 0.2 s for as long as the reader stays.
printf 'Content-Type: text/plain\r\n\r\n'
number=0
while number=$((number + 1)) && read -r uptime _ < /proc/uptime && echo "$number $uptime"; do
  sleep 0.2
done
