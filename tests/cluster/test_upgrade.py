"""helm upgrade from the version before, with a model served all the time."""
import json

from kubectl import wait_for


def columns(kubectl):
    definition = json.loads(kubectl("get", "crd", "modeldeployments.serving.millrace.dev", "-o", "json"))
    return len(definition["spec"]["versions"][0]["additionalPrinterColumns"])


def test_upgrading_the_chart_is_not_seen_by_clients(chart, tiny_before, traffic):
    tiny_before.wait()
    images = lambda: {pod["spec"]["containers"][0]["image"] for pod in tiny_before.pods()}
    assert images() == {chart.image_before}
    before = columns(chart.kubectl)
    with traffic(tiny_before):
        chart.upgrade()
        # The operator's image is that of routers and workers which name none.
        wait_for("all pods to run the new image", lambda: images() == {chart.image})
        tiny_before.wait()
    assert columns(chart.kubectl) == before + 1, "definitions are upgraded too"
