{{- /* What a schema cannot say, or cannot say helpfully. */ -}}

{{- /* MiB that BPF maps take at 64 CPUs (docs/memory.md), and the agent after an hour beside ten new containers a second; what
       `cargo xtask deploy-check` compares with that page. */ -}}
{{- define "probe.memoryFloorMiB" -}}
{{- $config := .Values.config -}}
{{- $maps := 0 -}}
{{- range list
    (list "tcp-sockets" 16384 187)
    (list "max-cgroups" 512 42376)
    (list "dns-pending" 8192 544)
    (list "syscall-blocks" 16384 686)
    (list "syscall-threads" 16384 168)
    (list "ring-kib" 256 11264) -}}
{{- $set := int64 (default (index . 1) (index $config (index . 0))) -}}
{{- $maps = add $maps (mul (sub $set (index . 1)) (index . 2)) -}}
{{- end -}}
{{- add 107 (div $maps 1048576) -}}
{{- end -}}

{{- define "probe.mib" -}}
{{- $number := int64 (regexFind "^[0-9]+" .) -}}
{{- if hasSuffix "Gi" . -}}{{- mul $number 1024 -}}{{- else -}}{{- $number -}}{{- end -}}
{{- end -}}

{{- define "probe.refuse" -}}
{{- $values := .Values -}}
{{- $floor := int64 (include "probe.memoryFloorMiB" .) -}}
{{- $request := int64 (include "probe.mib" $values.resources.requests.memory) -}}
{{- $limit := int64 (include "probe.mib" $values.resources.limits.memory) -}}
{{- if lt $request $floor -}}
{{- fail (printf "resources.requests.memory is %s, but the maps of this config and the agent take %d MiB: raise it to %dMi at least, or lower the map sizes in config" $values.resources.requests.memory $floor $floor) -}}
{{- end -}}
{{- if lt $limit $request -}}
{{- fail (printf "resources.limits.memory (%s) is below resources.requests.memory (%s): raise the limit" $values.resources.limits.memory $values.resources.requests.memory) -}}
{{- end -}}
{{- if hasKey $values.resources.limits "cpu" -}}
{{- fail "resources.limits.cpu is set: throttled, the agent would read its rings too late and lose events. Leave it out; resources.requests.cpu is its share where CPUs are busy" -}}
{{- end -}}
{{- if and (index $values.config "nat") (not $values.hostNetwork) -}}
{{- fail "config.nat asks the connection tracking of the pod's own network namespace, which has none of the node's connections: set hostNetwork: true too" -}}
{{- end -}}
{{- if and $values.collector.tls.caSecret $values.collector.tls.caConfigMap -}}
{{- fail "collector.tls.caSecret and collector.tls.caConfigMap are both set: keep one of them" -}}
{{- end -}}
{{- if not $values.collector.endpoint -}}
{{- if or $values.collector.headers.secret $values.collector.tls.caSecret $values.collector.tls.caConfigMap $values.collector.tls.clientSecret -}}
{{- fail "collector.headers or collector.tls is set without collector.endpoint: say where the collector is" -}}
{{- end -}}
{{- if $values.spool.enabled -}}
{{- fail "spool.enabled is true without collector.endpoint: only what a collector does not take is kept there" -}}
{{- end -}}
{{- end -}}
{{- if and $values.kubelet.insecureTLS $values.kubelet.caConfigMap -}}
{{- fail "kubelet.insecureTLS and kubelet.caConfigMap are both set: whose certificate is believed cannot be both anybody's and a certain authority's" -}}
{{- end -}}
{{- if and $values.pin.enabled (eq $values.securityProfile "least-privilege") (not $values.leastPrivilege.appArmorProfile) -}}
{{- fail "pin.enabled with least-privilege: the runtime's default AppArmor profile forbids writing below /sys/fs/bpf. Set leastPrivilege.appArmorProfile, {type: Unconfined} or one of your own (also where no AppArmor runs: it does no harm)" -}}
{{- end -}}
{{- end -}}
