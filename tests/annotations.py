"""How annotations are checked in the test run: an int is a float too, as type checkers have it."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
