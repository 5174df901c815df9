"""What the user's code printed during one call is told with its trial, and still goes where it went."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from trials import rows, said
from trials.records import Ending, Outcome
from trials.store import Store


def test_a_call_is_listened_to_and_what_it_says_is_passed_on(capsys):
    print("before")
    with said.listening() as told:
        print("out")
        print("err", file=sys.stderr)
    print("after")
    assert told() == "out\nerr\n"
    assert capsys.readouterr() == ("before\nout\nafter\n", "err\n")


def test_only_the_tail_is_kept():
    with said.listening() as told:
        print("a" * 3 * said.MOST)
        print("end")
    assert len(told()) == said.MOST
    assert told().endswith("aaa\nend\n")


def test_what_other_threads_say_is_not_the_trial_s(capsys):
    with said.listening() as told:
        other = threading.Thread(target=print, args=("progress",))
        other.start()
        other.join()
        print("mine")
    assert told() == "mine\n"
    assert capsys.readouterr().out == "progress\nmine\n"


def test_a_file_tells_also_what_children_said_and_what_was_said_before_stays_a_while(tmp_path, monkeypatch):
    path = tmp_path / "words"
    with path.open("w+") as file, monkeypatch.context() as patch:  # as in a worker process: all output is a file
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, file)
        patch.setattr(said, "_kept_in", file.fileno())
        calls = []
        for turn in range(2):
            with said.listening() as told:
                print("trial", turn)
                sys.stdout.flush()
                subprocess.run(["echo", "its child"], check=True, stdout=sys.stdout)
                os.write(sys.stdout.fileno(), b"\xff\n")
            calls.append(told())
        left = path.read_bytes()
        patch.setattr(said, "ROOM", len(left) - 1)
        with said.listening() as told:
            print("b" * 3 * said.MOST)
        calls.append(told())
        emptied = path.read_bytes()
    assert calls[:2] == [f"trial {turn}\nits child\n\ufffd\n" for turn in range(2)]
    assert left == b"trial 0\nits child\n\xff\ntrial 1\nits child\n\xff\n"
    assert emptied == b"b" * 3 * said.MOST + b"\n"
    assert calls[2] == ("b" * 3 * said.MOST + "\n")[-said.MOST :]


def outcome(number: int, words: str | None) -> Outcome:
    return Outcome(
        trial_id=f"t{number}", number=number, bundle_id="b", attempt=0, ending=Ending.COMPLETE, point={}, said=words
    )


def test_it_is_stored_with_the_outcome_and_an_older_store_has_none(store: Store, monkeypatch):
    search = store.create("s", {})
    older = rows.SCHEMA.remove(rows.SCHEMA.get_field_index("said"))
    for bundle, words, schema in (("b0", None, older), ("b1", "hello \udcff\n", rows.SCHEMA)):
        with monkeypatch.context() as patch:
            patch.setattr(rows, "SCHEMA", schema)
            writer = search.attempt_writer(bundle, 0)
            number = int(bundle[1:])
            found = outcome(number, words)
            writer.append(Outcome(**{**vars(found), "bundle_id": bundle}))
            writer.close()
    assert {o.number: o.said for o in search.outcomes()} == {0: None, 1: "hello \\udcff\n"}
