# Runs as a unit of systemd in the chroot, once it has come up: what an administrator does, and what systemd makes of it.
exec >/boot.log 2>&1
say() { echo "# $*"; }
fail() { echo "FAILED: $*"; journalctl --no-pager -n 40 -u probe -o cat; systemctl --no-pager status probe; exit 1; }
show() { systemctl show --value -p "$1" probe; }
# What has no other way to be waited for, for half a minute at most.
wait_for() { for _try in $(seq 300); do if eval "$1"; then return 0; fi; sleep 0.1; done; fail "not within 30 s: $1"; }
page() { exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' "$1" >&3 && cat <&3; exec 3>&-; }

say "installed, neither enabled nor started"
[ "$(systemctl is-active probe)" = inactive ] || fail "it runs"
[ "$(systemctl is-enabled probe)" = disabled ] || fail "it is enabled"

say "systemctl start probe"
systemctl start probe || fail "it does not start"
[ "$(systemctl is-active probe)" = active ] || fail "it is not active"
systemctl show -p Type,StatusText,NRestarts,WatchdogUSec,MemoryMax probe
pid=$(show MainPID)
[ "$(stat -c %U "/proc/$pid")" = probe ] || fail "it runs as another user"
# Ready is what it said, so it answers now.
page /readyz | tail -1
page /readyz | grep -q '^ready: .*tcp.*dns.*syscalls' || fail "it is not ready"
say "capabilities that are left"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' "/proc/$pid/status"
# 1 << 19: CAP_SYS_PTRACE alone; none in a pid namespace that is not the host's, as here, for nobody's executable is to be had.
grep -Eq '^CapEff:.00000000000(00|80)000$' "/proc/$pid/status" || fail "it keeps others"

say "connections that nobody takes"
for _try in 1 2 3 4 5 6 7; do (exec 4<>/dev/tcp/127.0.0.1/9) 2>/dev/null; done
# Others of this host may have some too: exact is the check of the image.
wait_for 'page /metrics | grep "^system_network_tcp_connections_total{.*ECONNREFUSED"'

say "systemctl reload probe"
echo 'interval: 2s' >> /etc/probe/probe.yaml
systemctl reload probe || fail "it does not reload"
wait_for 'case "$(show StatusText)" in *"last read"*) true ;; *) false ;; esac'
systemctl show -p ActiveState,StatusText probe
[ "$(show MainPID)" = "$pid" ] || fail "it was started anew"
echo 'interval: never' >> /etc/probe/probe.yaml
systemctl reload probe
wait_for 'case "$(show StatusText)" in *"has faults"*) true ;; *) false ;; esac'
sed -i '/^interval: never/d' /etc/probe/probe.yaml

say "spool in the state directory"
echo 'spool: /var/lib/probe/spool
otlp-endpoint: http://127.0.0.1:4317' >> /etc/probe/probe.yaml
systemctl restart probe || fail "it does not start with a spool"
stat -c '%U %a %n' /var/lib/probe /var/lib/probe/spool

say "hung: the watchdog"
before=$(show NRestarts)
kill -STOP "$(show MainPID)"
wait_for '[ "$(show NRestarts)" -gt "$before" ] && [ "$(systemctl is-active probe)" = active ]'
systemctl show -p NRestarts,ActiveState probe

say "bad configuration is not tried again"
echo 'interval: never' >> /etc/probe/probe.yaml
systemctl restart probe && fail "it starts with bad configuration"
systemctl show -p ActiveState,ExecMainStatus,SubState probe
[ "$(show SubState)" = failed ] || fail "it is tried again"
sed -i '/^interval: never/d' /etc/probe/probe.yaml

say "systemctl stop probe"
systemctl reset-failed probe
systemctl start probe || fail "it does not start again"
systemctl stop probe
[ "$(show Result)" = success ] || fail "it did not end well: $(show Result)"
journalctl --no-pager -u probe -o cat | tail -4

say "removed and purged while it runs"
systemctl enable --now probe 2>/dev/null || fail "it cannot be enabled"
DEBIAN_FRONTEND=noninteractive apt-get purge -qqy probe >/dev/null || fail "the purge fails"
[ -e /etc/systemd/system/multi-user.target.wants/probe.service ] && fail "it is still wanted"
[ -d "/proc/$(pidof probe || echo none)" ] && fail "it still runs"
echo PASSED
