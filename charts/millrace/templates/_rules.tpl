{{/*
What the operator asks of the API server, and nothing else: tests/cluster compares this with what it was seen to use.
All but a PoolAutoscaler's ConfigMap is read from watches, so nothing else needs get. Server-side apply is a patch, and of an object that is not there
yet a create too.
*/}}
{{- define "millrace.rules" -}}
# Patched: only their finalizers.
- apiGroups: [serving.millrace.dev]
  resources: [modeldeployments]
  verbs: [list, watch, patch]
- apiGroups: [serving.millrace.dev]
  resources: [workerpools]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [serving.millrace.dev]
  resources: [modeldeployments/status, workerpools/status, poolautoscalers/status]
  verbs: [patch]
# PoolAutoscalers scale as anybody would.
- apiGroups: [serving.millrace.dev]
  resources: [poolautoscalers]
  verbs: [list, watch]
- apiGroups: [serving.millrace.dev]
  resources: [workerpools/scale]
  verbs: [patch]
# Those that their spec.profile.configMap names.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get]
# Owner references that block deletion, where the cluster guards them (OwnerReferencesPermissionEnforcement).
- apiGroups: [serving.millrace.dev]
  resources: [modeldeployments/finalizers, workerpools/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch]
# Deleted: those of a lost node, so that their ranks start elsewhere.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# The readiness gate.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if include "millrace.may" (list . .Values.rbac.podMonitors "monitoring.coreos.com/v1") }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if include "millrace.may" (list . .Values.rbac.gatewayRoutes "gateway.networking.k8s.io/v1") }}
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if include "millrace.may" (list . .Values.rbac.podGroups "scheduling.k8s.io/v1beta1/PodGroup") }}
- apiGroups: [scheduling.k8s.io]
  resources: [podgroups]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- end }}
