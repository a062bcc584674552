"""`millrace operator` as a process of this machine, under the rights of the chart's service account."""
import os
import socket
import subprocess

import yaml

from deployment import BINARY


class Operator:
    """Use as a context manager. `namespace` is that of the chart's release, `env` of its environment."""

    def __init__(self, kubectl, folder, namespace, **env):
        self.account = kubectl("get", "deployments", "-n", namespace, "-l", "app.kubernetes.io/component=operator",
                               "-o", "jsonpath={.items[0].spec.template.spec.serviceAccountName}")
        with open(kubectl.environment["KUBECONFIG"]) as file:
            config = yaml.safe_load(file)
        token = kubectl("create", "token", self.account, "-n", namespace, "--duration", "2h").strip()
        config["users"][0]["user"] = {"token": token}
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.http = "127.0.0.1:%d" % free.getsockname()[1]
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [BINARY, "operator", "--namespace", namespace, "--identity", "test", "--image", "millrace:test", "--http", self.http],
            env=os.environ | env | {"KUBECONFIG": str(folder / "kubeconfig")}, stdin=subprocess.DEVNULL, stderr=open(self.log, "w"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
