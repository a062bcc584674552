"""The chart as it is installed, and a version of it from before."""
import re
import shutil
from pathlib import Path

import yaml

from cluster import REPOSITORY

CHART = REPOSITORY / "charts/millrace"
NAMESPACE = "millrace-system"
RELEASE = "millrace"


class Chart:
    """A release, installed as the version from before; `current` brings it to what is in the tree."""

    def __init__(self, cluster, image, image_before, folder):
        self.kubectl, self.image, self.image_before = cluster.kubectl, image, image_before
        self.before = previous(folder)
        self.upgraded = False

    def helm(self, *command, **fields):
        return self.kubectl(*command, program="helm", **fields)

    def install(self):
        self.helm("install", RELEASE, str(self.before), *self.values(self.image_before))

    def upgrade(self, *more):
        self.helm("upgrade", RELEASE, str(CHART), *self.values(self.image), *more)
        self.upgraded = True

    def current(self):
        if not self.upgraded:
            self.upgrade()

    def uninstall(self):
        self.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "4m")

    @staticmethod
    def values(image):
        repository, tag = image.rsplit(":", 1)
        return ["-n", NAMESPACE, "--wait", "--timeout", "4m",
                "--set", f"image.repository={repository}", "--set", f"image.tag={tag}",
                "--set", "image.pullPolicy=IfNotPresent"]


def previous(folder):
    """A copy of the chart under a lower version, whose definitions lack what came later: a column."""
    copy = Path(folder) / "millrace"
    shutil.copytree(CHART, copy)
    definition = copy / "files/crds/modeldeployments.yaml"
    text = yaml.safe_load(definition.read_text())
    text["spec"]["versions"][0]["additionalPrinterColumns"].pop()
    definition.write_text(yaml.safe_dump(text))
    file = copy / "Chart.yaml"
    text, found = re.subn(r"^version: .*$", "version: 0.0.1", file.read_text(), flags=re.M)
    assert found == 1
    file.write_text(text)
    return copy
