"""utils.core.errors: what a mistake says, and what code may read of it."""

import pickle

from utils.core.errors import UserError


def test_place_and_what_make_the_message():
    error = UserError.at("a.cfg:3", "is too old", command="python x.py", what_it_does="convert it")
    assert str(error) == "a.cfg:3: is too old; convert it: python x.py"
    assert (error.place, error.what, error.command) == ("a.cfg:3", "is too old", "python x.py")
    assert (str(UserError("leave it out")), UserError("leave it out").place) == ("leave it out", "")


def test_an_error_of_a_worker_process_comes_whole():
    error = pickle.loads(pickle.dumps(UserError.at("a.cfg:3", "is too old", command="python x.py")))
    assert (str(error), error.place, error.what) == ("a.cfg:3: is too old; run: python x.py", "a.cfg:3", "is too old")
