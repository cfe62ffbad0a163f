"""The container file and the Kubernetes manifest: what they name is there, and what they say is what the code does."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from omniforcing_jax.cli.main import parse
from omniforcing_jax.cli.options import ServeOptions
from omniforcing_jax.cli.serve import TOKEN, check_token
from omniforcing_jax.serve import door, guard
from omniforcing_jax.serve.endpoints import ENDPOINTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "serve"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@pytest.fixture(scope="module")
def steps():
    """The container file's instructions: pairs of a word and what follows it."""
    text = (FOLDER / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def of_kind(steps, kind):
    return [rest for word, rest in steps if word == kind]


@pytest.fixture(scope="module")
def entry(steps):
    (command,) = of_kind(steps, "ENTRYPOINT")
    return [word.strip(' "') for word in command.strip("[]").split(",")]


@pytest.fixture(scope="module")
def objects():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def pod(objects):
    return objects["StatefulSet"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (found,) = pod["containers"]
    return found


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate is not installed: pip install kubernetes-validate",
)
def test_the_manifest_fits_the_schemas_of_kubernetes(objects):
    import kubernetes_validate

    for each in objects.values():
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_what_the_image_copies_and_installs_is_there(steps):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for copied in of_kind(steps, "COPY"):
        *sources, _ = copied.split()
        assert all((ROOT / source).exists() for source in sources), copied
    (install,) = [each for each in of_kind(steps, "RUN") if "pip install" in each]
    assert "-c constraints.txt" in install
    assert "constraints.txt" in " ".join(of_kind(steps, "COPY"))
    named = re.findall(r"EXTRAS=([\w,]+\w)", (FOLDER / "Containerfile").read_text())
    assert named
    assert {extra for each in named for extra in each.split(",")} <= set(project["optional-dependencies"])
    (base,) = of_kind(steps, "FROM")
    version = re.search(r"python:3\.(\d+)", base)[1]
    lowest, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert int(lowest) <= int(version) < int(end)


def test_the_image_runs_a_command_that_there_is(steps, entry, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert entry[0] in project["scripts"]
    command = parse(entry[1:])
    assert isinstance(command, ServeOptions)
    monkeypatch.setenv(TOKEN, "choose1of2your3own")
    assert check_token(command) == "choose1of2your3own"
    assert str(command.port) in of_kind(steps, "EXPOSE")
    (volumes,) = of_kind(steps, "VOLUME")
    assert f'"{command.state}"' in volumes
    (variable,) = of_kind(steps, "ENV")
    name, _, cache = variable.partition("=")
    assert name == "JAX_COMPILATION_CACHE_DIR"
    assert f'"{Path(cache).parent}"' in volumes


def test_what_the_image_says_in_its_head_can_be_typed(entry):
    text = (FOLDER / "Containerfile").read_text()
    assert f"-e {TOKEN}=" in text
    assert f"-f {(FOLDER / 'Containerfile').relative_to(ROOT)}" in text
    (run,) = re.findall(r"#\s+(podman run .*)", text)
    assert f"{parse(entry[1:]).port}:{parse(entry[1:]).port}" in shlex.split(run)


def test_the_pods_command_is_understood(steps, entry, container, monkeypatch):
    command = parse([*entry[1:], *container["args"]])
    (variable,) = container["env"]
    assert variable["name"] == TOKEN
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    assert check_token(command)
    assert command.allow_host
    (port,) = container["ports"]
    assert port["containerPort"] == command.port
    assert {each["mountPath"] for each in container["volumeMounts"]} >= {str(command.state)}
    (volumes,) = of_kind(steps, "VOLUME")
    assert all(f'"{each["mountPath"]}"' in volumes for each in container["volumeMounts"])


def test_probes_ask_for_what_needs_no_token_under_a_name_that_is_let_in(container):
    open_paths = {each.path for each in ENDPOINTS if each.method == "GET"} & set(guard.OPEN)
    (port,) = container["ports"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[kind]["httpGet"]
        assert asked["path"] in open_paths
        assert asked["port"] == port["name"]
        assert {each["name"]: each["value"] for each in asked["httpHeaders"]}["Host"] in door.LOOPBACK
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_pod_runs_as_the_images_user_and_its_volume_holds_what_is_saved(steps, entry, objects, pod, container):
    (made,) = [each for each in of_kind(steps, "RUN") if "useradd" in each]
    assert f"--uid {pod['securityContext']['runAsUser']} " in made
    (claim,) = objects["StatefulSet"]["spec"]["volumeClaimTemplates"]
    names = {claim["metadata"]["name"], *(each["name"] for each in pod["volumes"])}
    assert {each["name"] for each in container["volumeMounts"]} == names
    storage = claim["spec"]["resources"]["requests"]["storage"]
    command = parse([*entry[1:], *container["args"]])
    assert int(storage[:-2]) * UNITS[storage[-2:]] > 1.25e9 * command.state_gb  # one stream is written beside the rest


def test_the_service_finds_the_pods(objects):
    service, pods = objects["Service"], objects["StatefulSet"]["spec"]
    assert pods["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pods["template"]["metadata"]["labels"].items()
    assert pods["selector"]["matchLabels"].items() <= pods["template"]["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert str(port["port"]) == pods["template"]["metadata"]["annotations"]["prometheus.io/port"]
