"""Where things are, and how files are read: precedence of the store's sources, YAML and JSON with places of faults."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from search_spaces import Invalid
from service.documents import document, parse_yaml
from service.settings import Setting, board_url, service_url, settings, started_url, store_root, token
from service.spec import read


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """A working directory and a home without any setting."""
    service = ("CONTINUA_BOARD", "CONTINUA_URL", "CONTINUA_TOKEN", "CONTINUA_TOKEN_FILE")
    for variable in ("CONTINUA_STORE", "CONTINUA_DATA", "XDG_CONFIG_HOME", "XDG_DATA_HOME", *service):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "project")


def refused(flag: str | None = None) -> str:
    with pytest.raises(Invalid) as caught:
        store_root(flag)
    return str(caught.value)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_each_source_wins_over_the_next(tmp_path, monkeypatch):
    project, home = tmp_path / "project", tmp_path / "home"
    config = home / ".config" / "continua" / "config.toml"
    config.parent.mkdir(parents=True)
    steps = [(home / ".local" / "share" / "continua", "default")]
    assert store_root(None) == steps[-1]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store_root(None) == (tmp_path / "data" / "continua", "default")
    config.write_text('store = "from-config"\n')
    assert store_root(None) == (config.parent / "from-config", str(config))
    (project / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.continua]\nstore = "from-pyproject"\n')
    assert store_root(None) == (project / "from-pyproject", str(project / "pyproject.toml"))
    (project / "continua.toml").write_text('[tool.continua]\nstore = "from-continua"\n')
    assert store_root(None) == (project / "from-continua", str(project / "continua.toml"))
    monkeypatch.setenv("CONTINUA_STORE", "from-env")
    assert store_root(None) == (project / "from-env", "CONTINUA_STORE")
    assert store_root("from-flag") == (project / "from-flag", "--store")
    monkeypatch.setenv("CONTINUA_STORE", "")
    assert store_root(None)[1] == str(project / "continua.toml")


def test_files_without_a_store_are_passed_over(tmp_path):
    project = tmp_path / "project"
    (project / "pyproject.toml").write_text('[project]\nname = "mine"\nstore = "not ours"\n')
    (project / "continua.toml").write_text("")
    assert store_root(None)[1] == "default"
    (project / "continua.toml").write_text('store = "~/here"\n')
    assert store_root(None)[0] == tmp_path / "home" / "here"


def test_xdg_directories_count_only_when_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert store_root(None)[0] == tmp_path / "home" / ".local" / "share" / "continua"
    config = tmp_path / "etc" / "continua" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('store = "/somewhere"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "etc"))
    assert store_root(None) == (Path("/somewhere"), str(config))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tool.continua]\nstor = 'x'\n", "[tool.continua]: unknown key 'stor'. Did you mean 'store'?"),
        ("[tool.continua]\nstore = 3\n", "[tool.continua] store: must be a directory's path, but got 3."),
        ("[tool.continua]\nstore = ''\n", "must be a directory's path, but got ''."),
        ("[tool]\ncontinua = 'x'\n", "must be a table such as [tool.continua], but got 'x'."),
        ("[tool.continua\nstore = 'x'\n", "pyproject.toml: must be TOML, but: "),
        (b"\xff\xfe", "pyproject.toml: must be TOML, but: "),
    ],
)
def test_a_faulty_project_file_is_named_and_a_flag_passes_it_by(tmp_path, text, sentence):
    file = tmp_path / "project" / "pyproject.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in refused()
    assert str(file) in refused()
    assert store_root("elsewhere")[1] == "--store"


def test_a_store_that_cannot_be_a_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "store (--store): must be a directory, but" in refused(str(tmp_path / "file"))
    assert "got the URL 's3://bucket/x'; URLs are not known yet." in refused("s3://bucket/x")
    assert "store (--store): must be a directory's path, but got ' '." in refused(" ")
    assert "must be a directory, but got '~nobody-of-that-name/x'" in refused("~nobody-of-that-name/x")
    monkeypatch.setenv("CONTINUA_STORE", str(tmp_path / "file"))
    assert "store (CONTINUA_STORE): must be a directory" in refused()


def test_settings_carry_their_origins(tmp_path, monkeypatch):
    assert [row[0] for row in settings().rows()] == ["store", "board"]
    monkeypatch.setenv("CONTINUA_DATA", "/data")
    found = settings("/flag")
    board = ("board", "sqlite:///flag/board.sqlite", "default")
    assert found.rows() == [("store", "/flag", "--store"), board, ("data", "/data", "CONTINUA_DATA")]
    assert found.store == Setting(value="/flag", origin="--store")


# -- the service -------------------------------------------------------------------------------------------------------


def test_board_and_url_come_from_flag_environment_and_files(tmp_path, monkeypatch):
    project = tmp_path / "project"
    assert service_url() is None
    file = project / "continua.toml"
    file.write_text('board = "redis://one/0"\nurl = "http://one:8642/"\n')
    assert board_url(project).value == "redis://one/0"
    assert service_url() == Setting(value="http://one:8642", origin=str(file))
    monkeypatch.setenv("CONTINUA_BOARD", "redis://:password@two/0")
    monkeypatch.setenv("CONTINUA_URL", "https://two/api")
    assert board_url(project) == Setting(value="redis://:password@two/0", origin="CONTINUA_BOARD")
    assert service_url() == Setting(value="https://two/api", origin="CONTINUA_URL")
    assert service_url("http://three") == Setting(value="http://three", origin="--url")
    assert "password" not in str(settings().rows())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8642", "must be a service's URL such as http://127.0.0.1:8642, but got 'localhost:8642'"),
        ("ftp://a", "must be a service's URL"),
        ("http://", "must be a service's URL"),
        ("http://a:99999", "must be a service's URL"),
        ("http://me:secret@a", "must have no password"),
        ("http://a/?token=secret", "must have no password"),
    ],
)
def test_what_is_no_url_is_refused_without_its_secrets(url, words):
    with pytest.raises(Invalid) as caught:
        service_url(url)
    assert words in str(caught.value)
    assert "--url" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_token_is_found_and_never_shown(tmp_path, monkeypatch):
    assert token() is None
    own = tmp_path / "home" / ".config" / "continua" / "token"
    own.parent.mkdir(parents=True)
    own.write_text("secret-own\n")
    own.chmod(0o600)
    assert (token().value, token().origin) == ("secret-own", str(own))
    named = tmp_path / "named"
    named.write_text("secret-named")
    monkeypatch.setenv("CONTINUA_TOKEN_FILE", str(named))
    assert (token().value, token().origin) == ("secret-named", str(named))
    monkeypatch.setenv("CONTINUA_TOKEN", "secret-said")
    assert (token().value, token().origin) == ("secret-said", "CONTINUA_TOKEN")
    found = settings()
    assert ("token", "(hidden)", "CONTINUA_TOKEN") in found.rows()
    assert "secret" not in f"{found} {found.rows()}"


def test_a_token_that_others_may_read_or_that_is_none_is_refused_without_showing_it(tmp_path, monkeypatch):
    own = tmp_path / "home" / ".config" / "continua" / "token"
    own.parent.mkdir(parents=True)
    own.write_text("secret")
    own.chmod(0o644)
    with pytest.raises(Invalid, match=r"must be its owner's alone \(0600\), but is 0644; run: chmod 600"):
        token()
    monkeypatch.setenv("CONTINUA_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match=r"CONTINUA_TOKEN_FILE .* cannot be read: No such file"):
        token()
    for text in ("secret secret", "secret\nheader: x", "s\u00e9cret"):
        monkeypatch.setenv("CONTINUA_TOKEN", text)
        with pytest.raises(Invalid, match="must be one word") as caught:
            token()
        assert "cret" not in str(caught.value).replace("CONTINUA_TOKEN", "")


def test_a_file_that_others_may_read_holds_no_token(tmp_path):
    (tmp_path / "project" / "continua.toml").write_text('token = "secret"\n')
    with pytest.raises(Invalid, match="no file that others may read holds a secret") as caught:
        service_url()
    assert "'secret'" not in str(caught.value)


def test_what_up_wrote_leads_to_its_service(tmp_path):
    assert started_url(tmp_path) is None
    (tmp_path / "server.json").write_text("{")
    assert started_url(tmp_path) is None
    (tmp_path / "server.json").write_text('{"url": "http://127.0.0.1:1"}')
    assert started_url(tmp_path) == Setting(value="http://127.0.0.1:1", origin=str(tmp_path / "server.json"))


# -- documents ---------------------------------------------------------------------------------------------------------

DOCUMENTS = [
    ("a.yaml", "task: [1\nspace: 2\n", "a.yaml:2:6: must be YAML: "),
    ("a.yaml", "task: a\n\tspace: b\n", "a.yaml:2:1: must be YAML"),
    ("a.yaml", "task: a\nspace: 1\ntask: b\n", "a.yaml:3:1: must be YAML: the key 'task' stands twice"),
    ("a.yaml", "space:\n  lr: 1\n  lr: 2\n", "a.yaml:3:3: must be YAML: the key 'lr' stands twice"),
    ("a.yaml", "task: &t a\nname: *t\n", "a.yaml:1:7: anchors and aliases are refused, but got 't'"),
    (
        "a.yaml",
        "task: !!python/name:os.system x\n",
        "a.yaml:1:7: tags are refused, but got 'tag:yaml.org,2002:python/name",
    ),
    ("a.yaml", "task: !!int ''\n", "a.yaml:1:7: tags are refused"),
    ("a.yaml", "task: a\n---\ntask: b\n", "a.yaml:2:1: must be YAML: but found another document"),
    ("a.yaml", "task: 2020-13-45\n", "a.yaml: must be YAML, but month must be in 1..12; put the value in quotes."),
    ("a.yaml", "? {a: b}\n: c\n", "found unhashable key"),
    ("a.yaml", "[" * 20_000, "a.yaml: must have at most 20 levels, but is nested deeper"),
    ("a.yaml", "task: \x07\n", "a.yaml: must be YAML: unacceptable character"),
    ("a.yaml", b"task: \xff\n", "a.yaml: must be UTF-8 text, but byte 6 is not; save it as UTF-8."),
    ("a.yaml", "", "a.yaml: must hold a mapping such as {task: ..., space: ..., budget: ...}, but is empty."),
    ("a.yaml", "# nothing\n", "but is empty."),
    ("a.yaml", "- task\n", "a.yaml: must hold a mapping `key: value`, but got a list."),
    ("a.yaml", "task", "but got a str."),
    ("a.json", "", "a.json: must hold a mapping such as"),
    ("a.json", '{"task": 1,\n "space": }', "a.json:2:11: must be JSON: Expecting value"),
    (
        "a.json",
        '{"task": 1, "task": 2, "seed": {"x": 1, "x": 2}}',
        "a.json: each key must stand once, but 'task' stands",
    ),
    ("a.json", '{"a":' * 200_000, "a.json: must have at most 20 levels"),
    ("a.json", '{"seed": ' + "9" * 5000 + "}", "a.json: must be JSON, but Exceeds the limit"),
    ("a.json", "[]", "but got a list."),
]


@pytest.mark.parametrize(("name", "text", "sentence"), DOCUMENTS, ids=[s[:40] for _, _, s in DOCUMENTS])
def test_what_cannot_be_read_is_refused_with_its_place(name, text, sentence):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in (document, read):
        with pytest.raises(Invalid) as caught:
            reader(Path(name))
        assert sentence in str(caught.value)


def test_every_alias_and_duplicate_is_named_at_once():
    Path("a.yaml").write_text("a: &x 1\nb: *x\nc: !!str 3\n")
    with pytest.raises(Invalid) as caught:
        document(Path("a.yaml"))
    assert [fault.split(": ")[0] for fault in caught.value.faults] == ["a.yaml:1:4", "a.yaml:2:4", "a.yaml:3:4"]
    Path("a.json").write_text('{"seed": {"x": 1, "x": 2}, "seed": 1}')
    with pytest.raises(Invalid) as caught:
        document(Path("a.json"))
    assert len(caught.value.faults) == 2


def test_aliases_cannot_explode():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    begin = time.monotonic()
    with pytest.raises(Invalid):
        parse_yaml(bomb, "bomb")
    assert time.monotonic() - begin < 2


def test_a_file_that_is_not_there_has_a_neighbour():
    Path("search.yaml").touch()
    with pytest.raises(
        Invalid, match=r"serch.yaml: must be a file, but there is no such file. Did you mean 'search.yaml'\?"
    ):
        document(Path("serch.yaml"))
    with pytest.raises(Invalid, match=r"nowhere/a.yaml: must be a file, but there is no such file. Check its name."):
        document(Path("nowhere/a.yaml"))


def test_a_directory_is_no_spec():
    with pytest.raises(Invalid, match=r"must be a file, but is a directory; name the YAML or JSON file in it."):
        document(Path())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_rights_is_named():
    Path("a.yaml").write_text("task: a\n")
    Path("a.yaml").chmod(0)
    with pytest.raises(Invalid, match=r"a.yaml: cannot be read: Permission denied."):
        document(Path("a.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        (".5e1", 5.0),
        ("1.0e+2", 100.0),
        ("12", 12),
        ("1.5", 1.5),
        ("e3", "e3"),
        ("1e", "1e"),
        ("none", "none"),
        ("null", None),
        ("true", True),
        ("'1e-3'", "1e-3"),
        ("uci/digits", "uci/digits"),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    read_back = parse_yaml(f"x: {text}\n", "here")["x"]
    assert (type(read_back), read_back) == (type(value), value)


def test_a_byte_order_mark_is_no_part_of_the_text():
    Path("a.yaml").write_bytes(b"\xef\xbb\xbftask: a\n")
    assert document(Path("a.yaml")) == {"task": "a"}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
PROFILE = profile(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck))


@PROFILE
@given(data=st.dictionaries(st.text(), PLAIN, min_size=1, max_size=4))
def test_json_is_read_as_it_was_written(data):
    Path("a.json").write_text(json.dumps(data))
    assert document(Path("a.json")) == data


@PROFILE
@given(text=st.text(alphabet="ab:{}[]-&*!?|>'\"#%,<= \n\t0123.e\x00é", max_size=40) | st.text(max_size=20))
def test_no_text_brings_anything_but_invalid(text):
    for name in ("a.yaml", "a.json"):
        Path(name).write_text(text, encoding="utf-8")
        faults: tuple[str, ...] = ()
        try:
            document(Path(name))
        except Invalid as error:
            faults = error.faults
        assert all(fault.startswith(name) for fault in faults)
