import pytest

from benchmarks import fuzz
from task_offload.errors import ProtocolError


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_every_parser_accepts_its_corpus(name):
    parse, corpus = fuzz.PARSERS[name]()
    assert len(corpus) > 5
    for data in corpus:
        parse(data)


def test_an_input_is_the_same_for_the_same_seed():
    seen: list[list[bytes]] = []
    for _ in range(2):
        inputs: list[bytes] = []
        assert fuzz.run(inputs.append, [b"some input", b"another"], 200, seed=3) == 0
        seen.append(inputs)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 100


def test_refusals_count_as_handled_and_other_errors_end_the_run(capfd):
    def refuse(data: bytes) -> None:
        raise ProtocolError("no")

    def fail(data: bytes) -> None:
        raise IndexError("fault")

    assert fuzz.run(refuse, [b"x"], 10, seed=1) == 0
    assert "0 accepted" in capfd.readouterr().out
    with pytest.raises(IndexError):
        fuzz.run(fail, [b"x"], 10, seed=1)
    assert "input 0 of seed 1" in capfd.readouterr().err
