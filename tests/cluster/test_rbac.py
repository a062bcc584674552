"""The operator's rights are what it used in all of the tests before, no more and no less."""
import pytest

import chart as charts
import rbac

# Rights that nothing here uses, each with the reason why they are granted nevertheless.
# The API server looks for these when an owner reference is set (OwnerReferencesPermissionEnforcement), which is
# no request of its own.
EXCEPTIONS = {
    rbac.Right("serving.millrace.dev", f"{kind}/finalizers", "update", "cluster"): "references that block deletion"
    for kind in ("modeldeployments", "workerpools")}

# Used in test_autoscale alone, which has a part of tests/run for itself.
AUTOSCALING = {
    rbac.Right("serving.millrace.dev", resource, "patch", "cluster")
    for resource in ("poolautoscalers/status", "workerpools/scale")} | {rbac.Right("", "configmaps", "get", "cluster")}


def test_nothing_refused_and_nothing_granted_in_vain(request, cluster, operator, tiny):
    log, kubectl = cluster.audit_log(), cluster.kubectl
    ran = {item.path.stem for item in request.session.items}
    account = kubectl("get", "deployments", "-n", charts.NAMESPACE, "-l", "app.kubernetes.io/component=operator",
                      "-o", "jsonpath={.items[0].spec.template.spec.serviceAccountName}")
    events = list(rbac.requests(log, charts.NAMESPACE, account))
    rights = rbac.granted(kubectl, charts.NAMESPACE, account)
    assert events and rights
    used, uncovered = rbac.used(events, rights)
    print(f"{len(events)} requests recorded, {len(rights)} rights granted, {len(used)} used")
    refused = rbac.refused(events, cluster.restarts)
    assert not refused, "\n".join(f"{e['requestReceivedTimestamp']} {e['verb']} {e['requestURI']}" for e in refused[:20])
    assert not uncovered, uncovered
    if missing := {"test_install", "test_rollout", "test_scale", "test_faults", "test_operator", "test_group"} - ran:
        pytest.skip(f"what was not used says nothing without {', '.join(sorted(missing))}")
    vain = rights - used - EXCEPTIONS.keys() - (AUTOSCALING if "test_autoscale" not in ran else set())
    assert not vain, "granted and not used:\n" + "\n".join(sorted(map(str, vain)))
    assert EXCEPTIONS.keys() <= rights - used, "an exception that is none any more"
