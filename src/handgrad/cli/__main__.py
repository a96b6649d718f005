"""``python -m handgrad.cli``: the same as the ``handgrad`` script."""

from handgrad.cli import app

app(prog_name="handgrad")
