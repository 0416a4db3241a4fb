{{- define "probe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "probe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What a selector may have: it can never be changed. */ -}}
{{- define "probe.selectorLabels" -}}
app.kubernetes.io/name: {{ include "probe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "probe.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "probe.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "probe.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "probe.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "probe.image" -}}
{{- $repository := required "image.repository is not set: there is no public image yet. Build it (deploy/container/README.md), push it to your registry, and give its name: --set image.repository=registry.example.com/observability/probe --set image.digest=sha256:…" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The service account's right: a comma-free word of nodes/pods and nodes/proxy. */ -}}
{{- define "probe.kubeletPermission" -}}
{{- if ne .Values.kubelet.permission "auto" -}}
{{- .Values.kubelet.permission -}}
{{- else if semverCompare ">=1.33.0-0" .Capabilities.KubeVersion.Version -}}
nodes/pods
{{- else -}}
nodes/proxy
{{- end -}}
{{- end -}}

{{- /* Port of the collector, as its URL says or implies. */ -}}
{{- define "probe.collectorPort" -}}
{{- $url := urlParse .Values.collector.endpoint -}}
{{- if regexMatch ":[0-9]+$" $url.host -}}
{{- regexFind "[0-9]+$" $url.host -}}
{{- else if eq $url.scheme "https" -}}
443
{{- else -}}
80
{{- end -}}
{{- end -}}

{{- /* Whom the container runs as, and what it may. uid 0 in either profile: capabilities that a runtime adds reach only root
       (there are no ambient ones), and tracefs is root's. */ -}}
{{- define "probe.securityContext" -}}
{{- if eq .Values.securityProfile "privileged" -}}
privileged: true
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
{{- else -}}
{{- $least := .Values.leastPrivilege -}}
{{- $add := list "BPF" "NET_ADMIN" "PERFMON" -}}
{{- if or $least.perfEventParanoid (index .Values.config "program-stats") -}}
{{- $add = append $add "SYS_ADMIN" -}}
{{- end -}}
{{- if $least.executables -}}
{{- $add = append $add "SYS_PTRACE" -}}
{{- end -}}
{{- if $least.linuxBefore511 -}}
{{- $add = append $add "SYS_RESOURCE" -}}
{{- end -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
capabilities:
  drop: [ALL]
  add: [{{ join ", " $add }}]
seccompProfile:
  {{- toYaml $least.seccompProfile | nindent 2 }}
{{- with $least.appArmorProfile }}
appArmorProfile:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $least.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* What of the host every pod of the chart sees. */ -}}
{{- define "probe.hostMounts" -}}
- name: cgroup
  mountPath: /host/sys/fs/cgroup
  readOnly: true
{{- if .Values.tracefs }}
- name: tracefs
  mountPath: /sys/kernel/tracing
  readOnly: true
{{- end }}
{{- end -}}

{{- define "probe.hostVolumes" -}}
- name: cgroup
  hostPath:
    path: /sys/fs/cgroup
    type: Directory
{{- if .Values.tracefs }}
- name: tracefs
  hostPath:
    path: /sys/kernel/tracing
    type: Directory
{{- end }}
{{- end -}}

{{- define "probe.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* probe.yaml: `config`, and the keys that other values set. Those with $(…) or secrets in them are in the environment instead. */ -}}
{{- define "probe.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- with .Values.collector -}}
{{- if .endpoint -}}
{{- $_ := set $config "otlp-protocol" .protocol -}}
{{- $_ := set $config "otlp-compression" .compression -}}
{{- if or .tls.caSecret .tls.caConfigMap -}}
{{- $_ := set $config "otlp-certificate" "/etc/probe/collector-ca/ca.crt" -}}
{{- end -}}
{{- if .tls.clientSecret -}}
{{- $_ := set $config "otlp-client-certificate" "/etc/probe/collector-client/tls.crt" -}}
{{- $_ := set $config "otlp-client-key" "/etc/probe/collector-client/tls.key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.kubelet -}}
{{- if not .enabled -}}
{{- $_ := set $config "kubelet" "off" -}}
{{- else -}}
{{- if .insecureTLS -}}
{{- $_ := set $config "kubelet-insecure-tls" true -}}
{{- end -}}
{{- if .caConfigMap -}}
{{- $_ := set $config "kubelet-ca" "/etc/probe/kubelet-ca/ca.crt" -}}
{{- end -}}
{{- if .labels -}}
{{- $_ := set $config "kube-labels" .labels -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.spool -}}
{{- if .enabled -}}
{{- $_ := set $config "spool" "/var/lib/probe/spool" -}}
{{- $_ := set $config "spool-mib" .mib -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
