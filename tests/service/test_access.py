"""Tokens: made, listed, revoked, told apart, kept from other users, and seen by a running server."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from search_spaces.faults import Invalid
from service.access import (
    SCOPES,
    Access,
    Token,
    add,
    check_binding,
    client_file,
    first_token,
    is_loopback,
    private_text,
    revoke,
    server_file,
    tokens,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "continua" / "tokens.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_shown_once_and_kept_as_a_digest(path: Path) -> None:
    plain = add("ada", "submit", path=path)
    assert len(plain) >= 40
    assert plain not in path.read_text()
    assert mode(path) == 0o600
    found = Access(path).who(plain)
    assert found is not None
    assert (found.name, found.scope, found.owner) == ("ada", "submit", "ada")
    assert Access(path).who(plain + "x") is None
    assert Access(path).who("") is None
    assert Access(path).who("\udcff") is None


def test_scopes_are_ordered(path: Path) -> None:
    made = [Token(name="a", scope=scope, owner="a", sha256="", created=0) for scope in SCOPES]
    allowed = {token.scope: [token.allows(needed) for needed in SCOPES] for token in made}
    assert allowed == {"read": [True, False, False], "submit": [True, True, False], "admin": [True, True, True]}


def test_a_running_server_sees_tokens_come_and_go(path: Path) -> None:
    access = Access(path)
    assert access.who("anything") is None
    ada, bob = add("ada", "read", path=path), add("bob", "read", owner="team", path=path)
    assert access.who(ada) is not None
    assert access.who(bob).owner == "team"  # type: ignore[union-attr]
    assert revoke("ada", path=path).name == "ada"
    assert access.who(ada) is None
    assert access.who(bob) is not None
    assert [token.name for token in tokens(path)] == ["bob"]


def test_all_that_is_wrong_with_a_token_is_said_at_once(path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        add("../x", "root", owner="a b", path=path)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["token name", "token owner", "token scope"]
    add("ada", "read", path=path)
    with pytest.raises(Invalid, match="'ada' is there; revoke it first"):
        add("ada", "read", path=path)
    with pytest.raises(Invalid, match=r"unknown token 'adda'\. Did you mean 'ada'"):
        revoke("adda", path=path)


def test_two_who_add_at_once_both_get_theirs(path: Path) -> None:
    threads = [threading.Thread(target=add, args=(f"t{i}", "read"), kwargs={"path": path}) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in tokens(path)) == [f"t{i}" for i in range(8)]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused_with_the_way_out(path: Path, bits: int) -> None:
    plain = add("ada", "read", path=path)
    access = Access(path)
    assert access.who(plain)
    path.chmod(bits)
    for call in (lambda: access.who(plain), lambda: tokens(path), lambda: add("bob", "read", path=path)):
        with pytest.raises(Invalid, match=f"chmod 600 {path}"):
            call()
    path.chmod(0o600)
    assert access.who(plain)


ROOT = '{"tokens": [{"name": "a", "scope": "root", "owner": "a", "sha256": "", "created": 0}]}'


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"tokens": [{"name": "x"}]}', '{"tokens": 3}', ROOT])
def test_a_file_that_is_none_of_ours_lets_nobody_in(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(Invalid, match="must hold tokens"):
        Access(path).who("x")


def test_what_is_no_file_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(Invalid, match="must be a file"):
        private_text(path)


def test_the_first_start_makes_an_admin_and_tells_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = first_token()
    assert made == client_file() == tmp_path / "continua" / "token"
    assert mode(made) == mode(server_file()) == 0o600
    found = Access().who((private_text(made) or "").strip())
    assert found is not None
    assert found.scope == "admin"
    assert first_token() is None


def test_a_client_of_another_server_keeps_its_token(tmp_path: Path) -> None:
    client = tmp_path / "token"
    client.write_text("theirs\n")
    with pytest.raises(Invalid, match="move it away"):
        first_token(server=tmp_path / "tokens.json", client=client)
    assert client.read_text() == "theirs\n"
    assert not (tmp_path / "tokens.json").exists()


def test_only_loopback_may_be_bound_without_tokens(path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.0.1"):
        assert is_loopback(host)
        check_binding(host, [])
    for host in ("0.0.0.0", "", "::", "192.168.1.2", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(Invalid, match="continua token add"):
            check_binding(host, [])
        check_binding(host, [Token(name="a", scope="read", owner="a", sha256="", created=0)])


def test_the_file_is_json_that_people_can_read(path: Path) -> None:
    add("ada", "read", path=path)
    (entry,) = json.loads(path.read_text())["tokens"]
    assert sorted(entry) == ["created", "name", "owner", "scope", "sha256"]
