"""The checker that `--jaxtyping-packages` in pyproject.toml puts around the functions of the rooms with shapes."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number may stand where a float is asked for
