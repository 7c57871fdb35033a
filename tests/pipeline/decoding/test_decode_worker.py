import pytest

from mediamill.model.errors import MediaError
from mediamill.pipeline.decoding.decode_worker import _failure


@pytest.mark.parametrize("length", range(1970, 2000, 3))
def test_the_cut_of_a_message_never_uncovers_half_a_secret(length):
    text = "x" * length + " https://user:SECRETSECRET@host/a.png"
    failure = _failure(MediaError("decode_corrupt", text), "media", 1)
    assert failure["code"] == "decode_corrupt"
    assert len(failure["message"]) <= 2000
    assert "SEC" not in failure["message"]
    assert "user" not in failure["message"]
