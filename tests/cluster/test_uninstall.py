"""Nothing is left of the release but the definitions, which are kept until somebody says otherwise."""
import chart as charts
from kubectl import wait_for
from resources import everything


def test_uninstalling_leaves_nothing_behind(cluster, operator, tiny):
    tiny.delete()
    tiny.wait_gone()
    operator.uninstall()
    # As NOTES.txt says.
    cluster.kubectl("delete", "crd", "-l", f"app.kubernetes.io/instance={charts.RELEASE},app.kubernetes.io/component=crds")
    left = lambda: everything(cluster.kubectl) - operator.found
    try:
        wait_for("everything to be gone", lambda: not left(), patience=60)
    except AssertionError:
        assert not left(), "left behind:\n" + "\n".join(sorted(left()))
