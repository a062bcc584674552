{{/* What all names begin with. */}}
{{- define "millrace.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{/* Never changed, because selectors are made of them. Arguments: the root and a component. */}}
{{- define "millrace.selectorLabels" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "millrace.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: millrace
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: millrace
{{- end }}

{{/* Arguments: the root and an image, whose empty fields are those of .Values.image. */}}
{{- define "millrace.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $repository := default $root.Values.image.repository $image.repository }}
{{- $own := not (or $image.repository $image.tag $image.digest) }}
{{- $digest := ternary $root.Values.image.digest $image.digest $own }}
{{- if $digest }}{{ printf "%s@%s" $repository $digest }}
{{- else }}{{ printf "%s:%s" $repository (default $root.Chart.AppVersion (default $root.Values.image.tag $image.tag)) }}{{ end }}
{{- end }}

{{- define "millrace.serviceAccount" -}}
{{- default (printf "%s-operator" (include "millrace.fullname" .)) .Values.serviceAccount.name }}
{{- end }}

{{/* Its name is the operator's choice: one for each namespace that is looked after, and one for all. */}}
{{- define "millrace.lease" -}}
millrace-operator{{ with .Values.watchNamespace }}-{{ . }}{{ end }}
{{- end }}

{{/* Restricted Pod Security, of a pod and of a container. */}}
{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where the operator and routers find etcd: host:port, separated by commas; empty without one. */}}
{{- define "millrace.etcdEndpoints" -}}
{{- if eq .Values.etcd.mode "embedded" }}{{ printf "%s-etcd.%s.svc:2379" (include "millrace.fullname" .) .Release.Namespace }}
{{- else if eq .Values.etcd.mode "external" }}{{ join "," .Values.etcd.external.endpoints }}{{ end }}
{{- end }}

{{/* Arguments: the root, auto | always | never, and the API that auto looks for. "true" or nothing. */}}
{{- define "millrace.may" -}}
{{- $root := index . 0 }}{{ $when := index . 1 }}
{{- if or (eq $when "always") (and (eq $when "auto") ($root.Capabilities.APIVersions.Has (index . 2))) }}true{{ end }}
{{- end }}

{{/* A file of rules, with the objectives of values.yaml in the place of its own. The larger one last: it may be 0.1. */}}
{{- define "millrace.objectives" -}}
{{- $objectives := (index . 0).Values.alerts.objectives -}}
{{- index . 1
  | replace "le=~\"0.1([.]0)?\"" (printf "le=~\"%s([.]0)?\"" $objectives.betweenTokens)
  | replace "le=~\"2([.]0)?\"" (printf "le=~\"%s([.]0)?\"" $objectives.firstToken) -}}
{{- end }}
